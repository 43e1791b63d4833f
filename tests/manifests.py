"""What kustomize renders, for the tests of the cluster side: fixtures and ways to look into it."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent

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
