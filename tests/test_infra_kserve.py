"""infra/kserve: what KServe 0.20 accepts, in Standard mode, before, during and after a rollout."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.pod_security import violations

FOLDER = Path(__file__).parents[1] / "infra/kserve"
MODE = "serving.kserve.io/deploymentMode"
# What KServe's CRD (v0.20.0, config/crd/full/serving.kserve.io_inferenceservices.yaml) has in spec.predictor beside the
# fields of a pod: name -> its type, or the values that it takes.
PREDICTOR: dict[str, Any] = {
    "annotations": dict, "autoScaling": dict, "batcher": dict, "canaryTrafficPercent": int,
    "containerConcurrency": int, "deploymentStrategy": dict, "labels": dict, "logger": dict, "maxReplicas": int,
    "minReplicas": int, "model": dict, "name": str, "scaleMetric": {"cpu", "memory", "concurrency", "rps"},
    "scaleMetricType": str, "scaleTarget": int, "storageContainerName": str, "storageUris": list, "timeout": int,
    "workerSpec": dict,
}  # fmt: skip
# What Knative Serving (v0.48.1, which KServe 0.20 builds on; pkg/apis/serving/fieldmask.go, PodSpecMask with the
# features that are on by default) leaves of a pod. It refuses the rest, in KServe's default mode.
KNATIVE = {
    "serviceAccountName", "containers", "volumes", "imagePullSecrets", "enableServiceLinks",
    "automountServiceAccountToken",
}  # fmt: skip
SCALING = {"maxReplicas", "scaleTarget", "scaleMetric", "autoScaling"}

Document = dict[str, Any]


def read(name: str) -> Document:
    return dict(yaml.safe_load((FOLDER / name).read_text()))


@pytest.fixture
def service() -> Document:
    return read("inference-service.yaml")


def rollout(service: Document, *asked: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(FOLDER / "rollout.py"), *asked]
    return subprocess.run(command, input=json.dumps(service), capture_output=True, text=True, timeout=60)


def changed(service: Document, *asked: str) -> Document:
    done = rollout(service, *asked)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def pod(predictor: Document) -> Document:
    return {k: v for k, v in predictor.items() if k not in PREDICTOR}


def check_schema(service: Document) -> None:
    """The CRD: no unknown field, each of its type."""
    assert service["spec"].keys() <= {"predictor", "explainer", "transformer", "canary"}
    predictors = [service["spec"]["predictor"]]
    for canary in service["spec"].get("canary", ()):
        assert canary.keys() == {"predictor", "trafficPercent"} and 0 <= canary["trafficPercent"] <= 100
        predictors.append(canary["predictor"])
    for predictor in predictors:
        for name, kind in PREDICTOR.items():
            if name in predictor:
                ok = predictor[name] in kind if isinstance(kind, set) else isinstance(predictor[name], kind)
                assert ok, (name, predictor[name])
        document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod(predictor)}
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def storage_uri(predictor: Document) -> str | None:
    """As predictor_custom.go, GetStorageUri."""
    (container,) = [c for c in predictor["containers"] if c["name"] == "kserve-container"]
    return next((e["value"] for e in container["env"] if e["name"] == "STORAGE_URI"), None)


def refused(service: Document, before: Document | None = None) -> list[str]:
    """What KServe's webhook (v0.20.0, inference_service_validation.go) or Knative would say."""
    stable, mode = service["spec"]["predictor"], service["metadata"].get("annotations", {}).get(MODE)
    found = []
    if mode != "Standard":
        found += [f"Knative: {field}" for field in sorted(pod(stable).keys() - KNATIVE)]
    elif stable.get("scaleMetric") in ("concurrency", "rps"):
        found.append("no such metric in Standard mode")  # validateScalingHPACompExtension
    canaries = service["spec"].get("canary", [])
    if canaries and mode != "Standard":
        found.append("canary is only supported in Standard deployment mode")
    if canaries and storage_uri(stable) is None:
        found.append("canary requires a stable predictor with a model")
    names = [stable.get("name"), *(c["predictor"].get("name") for c in canaries)]
    if None in names[1:] or len(set(names)) < len(names):
        found.append("canary predictor.name is missing or there twice")
    for canary in canaries:
        found += [f"canary must not set {field}" for field in sorted(SCALING & canary["predictor"].keys())]
        if canary["predictor"].get("minReplicas", 0) > stable.get("minReplicas", 1):
            found.append("canary minReplicas must not exceed stable's")
    old = before["spec"]["predictor"] if before else stable
    if old.get("name") != stable.get("name") and storage_uri(old) == storage_uri(stable):
        found.append("predictor.name change requires a model change")  # validatePredictorNameChange
    return found


def test_the_service_is_accepted_in_standard_mode_and_knative_would_refuse_it(service: Document) -> None:
    check_schema(service)
    assert refused(service) == []
    assert not violations(pod(service["spec"]["predictor"]))
    del service["metadata"]["annotations"][
        MODE
    ]  # KServe's default is Serverless: config/configmap/inferenceservice.yaml
    assert "Knative: terminationGracePeriodSeconds" in refused(service)
    service["spec"]["predictor"]["scaleMetrc"] = "cpu"
    with pytest.raises(kubernetes_validate.ValidationError, match="scaleMetrc"):
        check_schema(service)


def test_a_challenger_is_a_canary_by_one_command_and_its_promotion_keeps_its_pods(service: Document) -> None:
    beside = changed(service, "canary", "4", "--percent", "25")
    check_schema(beside)
    assert refused(beside, service) == []
    (canary,) = beside["spec"]["canary"]
    assert canary["trafficPercent"] == 25 and canary["predictor"]["name"] == "v4"
    assert storage_uri(canary["predictor"]) == "models:/fashion-mnist-lt/4"
    assert beside["spec"]["predictor"] == service["spec"]["predictor"]
    assert changed(beside, "cancel") == service

    promoted = changed(beside, "promote")
    check_schema(promoted)
    assert refused(promoted, beside) == []
    stable = promoted["spec"]["predictor"]
    # KServe names the Deployment after predictor.name and leaves it alone if nothing in its pods changes.
    assert stable["name"] == "v4" and stable["containers"] == canary["predictor"]["containers"]
    same = {k: v for k, v in stable.items() if k not in ("name", "containers")}
    assert same == {k: v for k, v in service["spec"]["predictor"].items() if k != "containers"}
    assert refused(changed(promoted, "canary", "5"), promoted) == []


def test_a_rollout_that_cannot_be_is_one_line(service: Document) -> None:
    for asked, line in ((["promote"], "has no canary"), (["cancel"], "has no canary"), (["canary", "1"], "already")):
        done = rollout(service, *asked)
        assert done.returncode == 1 and not done.stdout and re.fullmatch(rf"error: .*{line}.*\n", done.stderr)
    by_alias = copy.deepcopy(service)
    by_alias["spec"]["predictor"]["containers"][0]["env"][0]["value"] = "models:/fashion-mnist-lt@champion"
    (canary,) = changed(by_alias, "canary", "7")["spec"]["canary"]
    assert storage_uri(canary["predictor"]) == "models:/fashion-mnist-lt/7"


def test_the_rules_of_a_canary_can_fail(service: Document) -> None:
    beside = changed(service, "canary", "4")
    bad = copy.deepcopy(beside)
    bad["spec"]["canary"][0]["predictor"] |= {"maxReplicas": 2, "minReplicas": 5}
    bad["spec"]["predictor"]["containers"][0]["env"] = []
    del bad["spec"]["canary"][0]["predictor"]["name"]
    assert len(refused(bad)) == 4
    assert refused({**beside, "metadata": {}})
    renamed = copy.deepcopy(service)
    renamed["spec"]["predictor"]["name"] = "v1"
    assert refused(renamed, service) == ["predictor.name change requires a model change"]


@pytest.mark.slow
def test_the_model_is_fetched_by_a_storage_container_of_ours(service: Document, tmp_path: Path) -> None:
    """Its command, run here with the two arguments that KServe adds, brings a model from a real MLflow."""
    spec = read("storage-container.yaml")["spec"]
    predictor = service["spec"]["predictor"]
    (format_,) = spec["supportedUriFormats"]
    assert re.search(format_["regex"], str(storage_uri(predictor))) and not re.search(format_["regex"], "s3://a/b")
    container = spec["container"]
    assert container["name"] == "storage-initializer"  # by which KServe merges it
    alone = {**pod(predictor), "initContainers": [container]}
    assert not violations(alone)
    assert not violations({"containers": [container]}), "whatever the pod says"
    document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": alone}
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    make = (
        "import mlflow, pathlib\n"
        f"mlflow.set_experiment(experiment_id=mlflow.create_experiment('x', '{tmp_path}/artifacts'))\n"
        f"pathlib.Path('{tmp_path}/model.py').write_text('''import mlflow\n"
        "class M(mlflow.pyfunc.PythonModel):\n    def predict(self, model_input: list[str]) -> list[str]:\n"
        "        return model_input\nmlflow.models.set_model(M())''')\n"
        f"mlflow.pyfunc.log_model(name='m', python_model='{tmp_path}/model.py', registered_model_name='named',"
        " pip_requirements=[])\n"
    )
    bin_ = Path(sys.executable).parent
    environment = {"PATH": f"{bin_}:/usr/bin:/bin", "MLFLOW_TRACKING_URI": uri, "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", make], check=True, env=environment, cwd=tmp_path, timeout=300)
    added = ["models:/named/1", str(tmp_path / "mnt")]
    subprocess.run([*container["command"], *added], check=True, env=environment, cwd=tmp_path, timeout=300)
    assert (tmp_path / "mnt/MLmodel").is_file() and (tmp_path / "mnt/model.py").is_file()
    variables = {e["name"]: e["value"] for e in predictor["containers"][0]["env"]}
    assert variables["MODEL_URI"] == "/mnt/models"  # constants.go, DefaultModelLocalMountPath
