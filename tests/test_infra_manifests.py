"""The cluster side: what kustomize renders is valid, refers to what is there, and is shut in as far as can be."""

import json
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainingRuntime

from lfm.serving.admission import PATHS
from lfm.serving.settings import Settings
from tests.pod_security import violations

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
OURS = {"lfm", "lfm-mlflow", "lfm-serve"}
GIVEN = {"kfp-launcher", "mlpipeline-minio-artifact"}
"""What Kubeflow Pipelines brings itself."""

Documents = list[dict[str, Any]]


def render(folder: Path) -> Documents:
    done = subprocess.run([BIN / "kubectl", "kustomize", folder], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the local overlay, with passwords made as its first lines say."""
    folder = tmp_path_factory.mktemp("infra")
    shutil.copytree(ROOT / "infra", folder / "infra", ignore=shutil.ignore_patterns("secrets"))
    overlay = folder / "infra/kustomize/overlays/local"
    command = re.findall(r"^#   (infra/secrets\.sh \S+)$", (overlay / "kustomization.yaml").read_text(), re.MULTILINE)
    subprocess.run(command[0].split(), cwd=folder, check=True, timeout=60)
    return overlay


def with_components(overlay: Path, runtime: str = "lfm", gpus: int = 0) -> Documents:
    """The overlay with the components that its lines leave to the reader."""
    file, settings = overlay / "kustomization.yaml", overlay / "training.yaml"
    kept = [each.read_text() for each in (file, settings)]
    file.write_text(re.sub(r"^  # - (\.\./\.\./\S+).*$", r"  - \1", kept[0], flags=re.MULTILINE))
    settings.write_text(kept[1].replace("runtime: lfm", f"runtime: {runtime}").replace('gpus: "0"', f'gpus: "{gpus}"'))
    try:
        return render(overlay)
    finally:
        file.write_text(kept[0])
        settings.write_text(kept[1])


@pytest.fixture(scope="module")
def local(overlay: Path) -> Documents:
    """The local overlay with every component."""
    return with_components(overlay)


@pytest.fixture(scope="module")
def base() -> Documents:
    return render(ROOT / "infra/kustomize/base")


@pytest.fixture(scope="module")
def serving() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "infra/kserve/inference-service.yaml").read_text()))


def of(kind: str, documents: Documents) -> dict[str, dict[str, Any]]:
    return {document["metadata"]["name"]: document for document in documents if document["kind"] == kind}


def find(value: Any, key: str) -> Iterator[Any]:
    """Every value under this key, however deep."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key:
                yield inner
            yield from find(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from find(inner, key)


def pods(documents: Documents) -> dict[str, dict[str, Any]]:
    """The pod specs: of workloads, of the training runtime, of the served model."""
    found = {}
    for document in documents:
        name = f"{document['kind']}/{document['metadata']['name']}"
        if document["kind"] in ("Deployment", "StatefulSet", "Job"):
            found[name] = document["spec"]["template"]["spec"]
        elif document["kind"] == "TrainingRuntime":
            job = document["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]
            found[name] = job["spec"]["template"]["spec"]
        elif document["kind"] == "InferenceService":
            own = {"annotations", "minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "timeout"}
            found[name] = {k: v for k, v in document["spec"]["predictor"].items() if k not in own}
    return found


def check(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_everything_renders_and_fits_the_schemas_of_kubernetes(local: Documents, serving: dict[str, Any]) -> None:
    for document in local:
        if document["kind"] != "TrainingRuntime":
            check(document)
    for name, spec in pods([*local, serving]).items():
        metadata = {"name": name.split("/")[1]}
        check({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


def test_the_check_of_the_schemas_can_fail(local: Documents) -> None:
    deployment = yaml.safe_load(yaml.safe_dump(of("Deployment", local)["lfm-mlflow"]))
    deployment["spec"]["template"]["spec"]["containers"][0]["imagePulPolicy"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagePulPolicy"):
        check(deployment)


def test_the_training_runtime_is_what_the_trainer_knows(local: Documents) -> None:
    runtime = of("TrainingRuntime", local)["lfm"]
    known = TrainerV1alpha1TrainingRuntime.from_dict(runtime)
    assert known is not None
    assert known.to_dict() == runtime, "a field that the trainer does not know is dropped"
    assert runtime["metadata"]["labels"]["trainer.kubeflow.org/framework"] == "torch"  # the SDK refuses others


@pytest.mark.parametrize(
    "setting",
    [
        "runAsNonRoot",
        "seccompProfile",
        "readOnlyRootFilesystem",
        "drop",
        "allowPrivilegeEscalation",
        "automountServiceAccountToken",
        "requests",
        "memory",
    ],
)
def test_every_pod_is_shut_in(local: Documents, serving: dict[str, Any], setting: str) -> None:
    expected: dict[str, Callable[[dict[str, Any], dict[str, Any]], bool]] = {
        "runAsNonRoot": lambda pod, _: (
            pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
        ),
        "seccompProfile": lambda pod, _: pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"},
        "automountServiceAccountToken": lambda pod, _: pod["automountServiceAccountToken"] is False,
        "readOnlyRootFilesystem": lambda _, c: c["securityContext"]["readOnlyRootFilesystem"] is True,
        "allowPrivilegeEscalation": lambda _, c: c["securityContext"]["allowPrivilegeEscalation"] is False,
        "drop": lambda _, c: c["securityContext"]["capabilities"] == {"drop": ["ALL"]},
        "requests": lambda _, c: {"cpu", "memory"} <= c["resources"]["requests"].keys(),
        "memory": lambda _, c: "memory" in c["resources"]["limits"],
    }
    for name, pod in pods([*local, serving]).items():
        for container in pod["containers"]:
            assert expected[setting](pod, container), name


def test_namespaces_that_enforce_restricted_take_every_pod(local: Documents, serving: dict[str, Any]) -> None:
    found = pods([*local, serving])
    assert len(found) == 6
    assert {name: violations(pod) for name, pod in found.items() if violations(pod)} == {}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("hostNetwork", True), ("hostPID", True), ("hostIPC", True),
        ("volumes", [{"name": "x", "hostPath": {"path": "/"}}]), ("volumes", [{"name": "x", "nfs": {}}]),
        ("securityContext.runAsUser", 0), ("securityContext.runAsNonRoot", None),
        ("securityContext.seccompProfile", None), ("securityContext.seccompProfile", {"type": "Unconfined"}),
        ("securityContext.sysctls", [{"name": "kernel.msgmax", "value": "1"}]),
        ("securityContext.seLinuxOptions", {"type": "spc_t"}), ("securityContext.seLinuxOptions", {"user": "root"}),
        ("securityContext.appArmorProfile", {"type": "Unconfined"}),
        ("securityContext.windowsOptions", {"hostProcess": True}),
        ("containers.0.securityContext", None), ("containers.0.securityContext.privileged", True),
        ("containers.0.securityContext.allowPrivilegeEscalation", None),
        ("containers.0.securityContext.runAsNonRoot", False), ("containers.0.securityContext.runAsUser", 0),
        ("containers.0.securityContext.capabilities", {"add": ["NET_BIND_SERVICE"]}),
        ("containers.0.securityContext.capabilities", {"drop": ["ALL"], "add": ["CHOWN"]}),
        ("containers.0.securityContext.procMount", "Unmasked"),
        ("containers.0.securityContext.seccompProfile", {"type": "Unconfined"}),
        ("containers.0.ports", [{"containerPort": 1, "hostPort": 1}]),
        ("containers.0.livenessProbe", {"httpGet": {"host": "elsewhere", "port": 1}}),
        ("containers.0.lifecycle", {"postStart": {"tcpSocket": {"host": "elsewhere", "port": 1}}}),
        ("initContainers", [{"name": "x", "image": "x"}]),
    ],
)  # fmt: skip
def test_each_control_of_restricted_is_checked(base: Documents, place: str, value: Any) -> None:
    pod = yaml.safe_load(yaml.safe_dump(pods(base)["Job/lfm-volume"]))
    assert not violations(pod)
    *path, last = place.split(".")
    inner: Any = pod
    for key in path:
        inner = inner[int(key)] if key.isdecimal() else inner[key]
    inner[last] = value
    assert violations(pod)


def test_every_server_has_probes_and_is_reached_by_whom_it_must_alone(local: Documents) -> None:
    policies = of("NetworkPolicy", local)
    for name, pod in pods(local).items():
        if name.startswith(("TrainingRuntime", "Job")):
            continue
        server = name.split("/")[1]
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= pod["containers"][0].keys()
        policy = policies[server]["spec"]
        assert policy["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": server}}
        assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
        ports = {port["containerPort"] for port in pod["containers"][0]["ports"]}
        service = of("Service", local)[server]["spec"]
        assert ports == {port["port"] for port in service["ports"]}
        assert ports == {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
    assert policies["lfm-postgres"]["spec"]["ingress"][0]["from"] == [
        {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "lfm-mlflow"}}}
    ]


def test_kserve_asks_what_the_server_answers_and_lets_it_finish(serving: dict[str, Any]) -> None:
    predictor = serving["spec"]["predictor"]
    (container,) = predictor["containers"]
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/ready", "readiness": "/ready", "liveness": "/ping"
    }  # fmt: skip
    scraped = predictor["annotations"]["prometheus.io/path"]
    assert {*(probe["path"] for probe in probes.values()), scraped} <= set(PATHS)
    (port,) = {probe["port"] for probe in probes.values()} | {p["containerPort"] for p in container["ports"]}
    dockerfile = (ROOT / "infra/docker/Dockerfile").read_text()
    (command,) = re.findall(r'^CMD (\["lfm", "serve".*\])$', dockerfile, re.MULTILINE)
    assert json.loads(command)[-1] == str(port) and f":{port}/ready" in dockerfile
    assert predictor["terminationGracePeriodSeconds"] > Settings.model_fields["stop_seconds"].default


def test_what_is_referred_to_is_there(local: Documents, serving: dict[str, Any]) -> None:
    there = {
        kind: of(kind, local).keys()
        for kind in ("Secret", "ConfigMap", "PersistentVolumeClaim", "Service", "Role", "ServiceAccount")
    }
    for reference in [*find([local, serving], "secretRef")]:
        assert reference["name"] in there["Secret"]
    for secret in find(local, "secretName"):
        assert secret in there["Secret"]
    for reference in find([local, serving], "configMapRef"):
        assert reference["name"] in there["ConfigMap"]
    for claim in find(local, "claimName"):
        assert claim in there["PersistentVolumeClaim"]
    endpoints = of("ConfigMap", local)["lfm-endpoints"]["data"]
    hosts = re.findall(r"http://([\w-]+):(\d+)", " ".join(endpoints.values()))
    assert len(hosts) == 2
    for host, port in hosts:
        assert int(port) in {p["port"] for p in of("Service", local)[host]["spec"]["ports"]}
    for binding in of("RoleBinding", local).values():
        assert binding["roleRef"]["name"] in there["Role"] and binding["subjects"][0]["name"] in there["ServiceAccount"]


@pytest.mark.parametrize("file", ["cluster.yaml", "cluster-mlflow-plugin.yaml"])
def test_pipelines_are_told_of_the_same_names(local: Documents, file: str) -> None:
    settings = yaml.safe_load((ROOT / "infra" / file).read_text())
    assert settings["home"]["name"] in of("PersistentVolumeClaim", local)
    assert settings["service_account"] in of("ServiceAccount", local)
    given = [name for source in (*settings["secrets"], *settings["config_maps"]) for name in source["keys"].values()]
    assert not [name for name in given if name.startswith("AWS_")], "KFP's launcher reads those of the step"
    assert len(given) == len(set(given))
    # KFP's plugin gives these itself (backend/src/v2/common/plugins/mlflow/handler.go); twice, the pod is invalid.
    assert any(name.startswith("MLFLOW_") for name in given) == (file == "cluster.yaml")
    assert {"LFM_S3_ENDPOINT_URL", "LFM_S3_ACCESS_KEY_ID", "LFM_S3_SECRET_ACCESS_KEY"} <= set(given)
    for secret in settings["secrets"]:
        assert secret["keys"].keys() <= of("Secret", local)[secret["name"]]["data"].keys()
    for known in settings["config_maps"]:
        assert known["keys"].keys() <= of("ConfigMap", local)[known["name"]]["data"].keys()


def test_the_steps_may_do_what_they_must_and_no_more(base: Documents, local: Documents) -> None:
    rules = of("Role", base)["lfm-steps"]["rules"]
    assert not [document for document in base if document["kind"] == "TrainingRuntime"]
    rules = [*rules, *of("Role", local)["lfm-trainer"]["rules"]]
    may = {
        (group, what, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for what in rule["resources"]
        for verb in rule["verbs"]
    }
    # What the Trainer's SDK calls, and Argo's executor.
    must = {
        ("trainer.kubeflow.org", "trainjobs", "create"), ("trainer.kubeflow.org", "trainjobs", "delete"),
        ("trainer.kubeflow.org", "trainingruntimes", "get"), ("", "pods/log", "get"), ("", "pods", "list"),
        ("argoproj.io", "workflowtaskresults", "create"), ("argoproj.io", "workflowtaskresults", "patch"),
    }  # fmt: skip
    assert must <= may
    assert not any("*" in part for rule in may for part in rule)
    assert {what for _, what, verb in may if verb in ("create", "patch", "delete", "update")} == {
        "trainjobs",
        "workflowtaskresults",
    }
    for rule in rules:
        if {"secrets", "configmaps"} & set(rule["resources"]):
            assert set(rule["resourceNames"]) <= GIVEN
    assert not [d for d in base if d["kind"].startswith("Cluster") or d["kind"] == "Secret"]


def test_images_are_named_by_version(local: Documents, serving: dict[str, Any]) -> None:
    for image in find([local, serving], "image"):
        name, tag = image.rsplit(":", 1)
        assert tag == "write-yours" if name in OURS else re.fullmatch(r"v?\d+(\.\d+)*(-\w+)?", tag), image


def test_passwords_are_made_once_differ_and_are_read_by_their_owner_alone(tmp_path: Path) -> None:
    made: list[dict[str, str]] = []
    for name in ("one", "two", "one"):
        subprocess.run([ROOT / "infra/secrets.sh", tmp_path / name], check=True, timeout=60, capture_output=True)
        made.append({path.name: path.read_text() for path in (tmp_path / name).iterdir()})
    assert made[0] == made[2] and made[0].keys() == made[1].keys()
    values = [set(re.findall(r"(?:PASSWORD|KEY)=(\S{16,})", "".join(each.values()))) for each in made[:2]]
    assert len(values[0]) >= 5 and not values[0] & values[1]
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "one").iterdir()} == {0o600}
    ignored = ["infra/secrets/mlflow.env", "infra/kustomize/overlays/local/secrets/s3.json"]
    subprocess.run(["git", "check-ignore", *ignored], cwd=ROOT, check=True, capture_output=True)


def test_scripts_and_dockerfile_are_clean() -> None:
    scripts = [*(ROOT / "infra").rglob("*.sh"), ROOT / ".ci/run"]
    assert len(scripts) >= 6
    for command in ([BIN / "shellcheck", *scripts], [BIN / "hadolint", ROOT / "infra/docker/Dockerfile"]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout
