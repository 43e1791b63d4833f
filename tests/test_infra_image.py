"""The real images: what is in them, what is not, and that the whole pipeline and a served model run in them."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import numpy as np
import pytest
from docker.models.containers import Container
from mlflow import MlflowClient

from lfm.serving.predictor import Predictor
from tests.containers import ROOT, SOMEBODY, Built, as_somebody, build, give_away

pytestmark = [pytest.mark.containers, pytest.mark.slow]
SMALL = {
    "data.max_per_class": 60, "data.imbalance": 10, "stage1.epochs": 2, "stage2.epochs": 1, "shots.many": 30
}  # fmt: skip
SHUT_IN = {
    "read_only": True,
    "tmpfs": {"/tmp": "rw,mode=1777"},
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
}
SOURCE = ("requirements", "lfm", "components", "pipelines", "infra", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def built(daemon: docker.DockerClient) -> Built:
    assert daemon.ping()
    return build(ROOT)


def inside(daemon: docker.DockerClient, image: str, *command: str, **options: Any) -> str:
    """What a command says in a container that is shut in as a step is."""
    return str(
        daemon.containers.run(image, list(command), remove=True, network_mode="none", **(SHUT_IN | options)), "utf-8"
    )


def test_the_image_carries_its_commit_and_is_a_batch_image(daemon: docker.DockerClient, built: Built) -> None:
    about = daemon.images.get(built.image).attrs["Config"]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    assert built.image == f"lfm:{commit}"
    assert about["Labels"]["org.opencontainers.image.revision"] == commit
    assert about["User"] == "10001:10001" and not about.get("Healthcheck")
    assert (
        inside(daemon, built.image, "python3", "-c", "from lfm.revision import commit; print(commit())").strip()
        == commit
    )
    assert built.seconds < 600, "make image takes less than ten minutes"


def test_it_works_shut_in_and_may_write_nowhere_else(daemon: docker.DockerClient, built: Built) -> None:
    assert "fashion-mnist-lt" in inside(daemon, built.image, "lfm", "presets")
    assert inside(daemon, built.image, "id", "-u").strip() == "10001"
    where = "for d in / /app /opt/lfm /etc /home /root /var/tmp; do test -w $d && echo $d; done; true"
    assert inside(daemon, built.image, "sh", "-c", where) == ""
    assert inside(daemon, built.image, "sh", "-c", where, read_only=False) == "/var/tmp\n"
    encode = """
from lfm.config.schema import TextConfig
from lfm.backbones.text_encoders import embed
print(embed(["Bag"], TextConfig(encoder="minilm")).shape)
"""
    assert "[1, 384]" in inside(daemon, built.image, "python3", "-c", encode, user="54321:54321")


def test_no_tool_of_building_or_developing_stays_and_no_setting_of_this_machine(
    daemon: docker.DockerClient, built: Built
) -> None:
    tools = "command -v gcc cc g++ c++ make ld git uv pytest ruff mypy"
    folders = "ls -Ad /installer /src /requirements /root/.cache /tmp/* /mnt/*"
    assert inside(daemon, built.image, "sh", "-c", f"({tools}; {folders}; true) 2>/dev/null") == ""
    absent = "import importlib.util as u; print([n for n in ('pytest', 'mypy', 'hypothesis') if u.find_spec(n)])"
    assert inside(daemon, built.image, "python3", "-c", absent).strip() == "[]"
    told = json.dumps([daemon.images.get(built.image).history(), daemon.images.get(built.image).attrs["Config"]["Env"]])
    assert "INDEX" not in told and "CERT" not in told.replace("ca-certificates", "")


def test_a_change_of_code_changes_one_small_layer_in_seconds(
    daemon: docker.DockerClient, built: Built, tmp_path: Path
) -> None:
    for name in SOURCE:
        copy: Callable[..., Any] = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    with (tmp_path / "lfm/__init__.py").open("a") as file:
        file.write(f"# changed at {time.time()}\n")
    changed = build(tmp_path, LFM_COMMIT="a-test")
    try:
        before, after = (daemon.images.get(image) for image in (built.image, changed.image))
        assert changed.image == "lfm:a-test" and changed.seconds < 60
        *same, last = after.attrs["RootFS"]["Layers"]
        assert same == before.attrs["RootFS"]["Layers"][:-1] and last != before.attrs["RootFS"]["Layers"][-1]
        code = next(layer for layer in after.history() if "COPY /app" in layer["CreatedBy"])
        assert 0 < code["Size"] < 50e6
    finally:
        daemon.images.remove(changed.image, force=True)


@pytest.fixture(scope="module")
def home(built: Built, fashion_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LFM_HOME of somebody who ran the whole pipeline in the image."""
    folder = tmp_path_factory.mktemp("home")
    photos = folder.parent / "photos"  # outside LFM_HOME, and named relative to the working folder
    shutil.copytree(fashion_folder, photos)
    give_away(folder)
    sets = [part for item in {**SMALL, "data.source": "photos"}.items() for part in ("--set", f"{item[0]}={item[1]}")]
    command = [
        sys.executable,
        "-m",
        "lfm.cli",
        "run",
        "fashion-mnist-lt",
        "--runner",
        "docker",
        "--image",
        built.image,
    ]
    done = subprocess.run(
        [*as_somebody(), *command, *sets],
        env={**os.environ, "LFM_HOME": str(folder), "PYTHONPATH": str(ROOT), "HOME": str(folder)},
        cwd=folder.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0 and "Registered model  models:/fashion-mnist-lt/1" in done.stdout, done.stdout
    return folder


def test_the_whole_pipeline_runs_in_the_image_as_a_user_who_is_not_root(built: Built, home: Path) -> None:
    me = os.getuid() or SOMEBODY
    assert {path.lstat().st_uid for path in home.rglob("*")} == {me}, "nothing comes out owned by root"
    api = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = api.get_experiment_by_name("fashion-mnist-lt").experiment_id
    runs = api.search_runs([experiment], order_by=["start_time"])
    assert {run.info.status for run in runs} == {"FINISHED"}
    parent, *children = runs
    steps = ["configure", "embed text", "evaluate", "fetch backbone", "prepare data", "register", "stage 1", "stage 2"]
    assert {*steps} <= {child.info.run_name for child in children}
    assert parent.data.tags["lfm.commit"] == built.image.removeprefix("lfm:")
    metrics = next((home / "pipelines").rglob("evaluate/metrics/metrics.json"))
    assert json.loads(metrics.read_text())["test"]["all"] > 20  # of ten classes


@pytest.fixture(scope="module")
def served(daemon: docker.DockerClient, home: Path) -> Iterator[Container]:
    """The registered model behind HTTP, in the image for serving."""
    model = next((home / "mlartifacts").rglob("MLmodel")).parent
    image = build(ROOT, "serve").image
    container = daemon.containers.run(
        image, detach=True, volumes={str(model): {"bind": "/data/model", "mode": "ro"}},
        ports={"8080/tcp": ("127.0.0.1", None)}, **SHUT_IN,
    )  # fmt: skip
    yield container
    container.remove(force=True)


def wait_until_healthy(container: Container, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    container.reload()
    while container.attrs["State"]["Health"]["Status"] != "healthy":
        assert time.monotonic() < deadline and container.status == "running", container.logs().decode()
        time.sleep(1)
        container.reload()


def test_the_image_for_serving_is_slim_and_answers_as_the_predictor_does(
    daemon: docker.DockerClient, built: Built, home: Path, served: Container
) -> None:
    about = served.image.attrs
    assert about["Config"]["User"] == "10001:10001"
    assert about["Size"] < daemon.images.get(built.image).attrs["Size"] - 1e9
    absent = (
        "import importlib.util as u; print([n for n in ('kfp', 'accelerate', 'triton', 'boto3') if u.find_spec(n)])"
    )
    assert inside(daemon, served.image.id, "python3", "-c", absent).strip() == "[]"
    wait_until_healthy(served)
    images = np.load(next((home / "store/dataset").glob("*/test_images.npy")), mmap_mode="r")[:20]
    port = served.attrs["NetworkSettings"]["Ports"]["8080/tcp"][0]["HostPort"]
    answer = json.loads(ask(port, {"inputs": images.tolist()}))["predictions"]
    expected = Predictor(next((home / "mlartifacts").rglob("model.safetensors")).parent).predict(np.array(images))
    assert [row["label"] for row in answer] == list(expected.label)
    assert [row["probability"] for row in answer] == pytest.approx(list(expected.probability), abs=1e-3)
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(port, {})
    assert refused.value.code == 400


def ask(port: str, body: Any) -> str:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return str(reply.read(), "utf-8")
