"""The cluster side: what kustomize renders is valid, refers to what is there, and is shut in as far as can be."""

import json
import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainingRuntime

from lfm.serving.admission import PATHS
from lfm.serving.settings import Settings
from tests.manifests import BIN, ROOT, Documents, base, check, find, local, of, overlay, pods, serving

__all__ = ["base", "local", "overlay", "serving"]  # fixtures
OURS = {"lfm", "lfm-mlflow", "lfm-serve"}
GIVEN = {"kfp-launcher", "mlpipeline-minio-artifact"}
"""What Kubeflow Pipelines brings itself."""


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
