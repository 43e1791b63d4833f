"""Training on several machines: containers as nodes, and what the real SDK asks of a cluster's server."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from safetensors.torch import load_file

from lfm.errors import InputError
from lfm.jobs.multinode import train_on_nodes
from lfm.storage.artifact import content_key
from lfm.training.curves import Curves
from tests.containers import ROOT, build, connect
from tests.test_ranks import alone, told  # noqa: F401  the same small run

WORK = content_key("test_nodes")
NAME = f"lfm-stage1-{WORK[:12]}"


@pytest.fixture(scope="module")
def daemon() -> Iterator[docker.DockerClient]:
    yield from connect()


@pytest.fixture(scope="module")
def image(daemon: docker.DockerClient) -> str:
    assert daemon.ping()
    return build(ROOT).image


@pytest.fixture
def containers(image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes are containers of this version; nothing of them may stay in the caller's home."""
    (tmp_path / "user").mkdir()
    for name, value in {"LFM_TRAINER_BACKEND": "container", "LFM_IMAGE": image, "HOME": str(tmp_path / "user")}.items():
        monkeypatch.setenv(name, value)


def left_behind(daemon: docker.DockerClient) -> list[str]:
    found = [*daemon.containers.list(all=True), *daemon.networks.list()]
    return [each.name for each in found if each.name.startswith(NAME)]


def run(told: dict[str, Any], folder: Path) -> tuple[dict[int, Any], Any]:  # noqa: F811
    """Curves by epoch and weights, on two nodes."""
    (folder / "out").mkdir(parents=True)
    sent: dict[int, Any] = {}

    def send(values: Any, epoch: int) -> None:
        assert epoch not in sent, "each point once"
        sent[epoch] = dict(values)

    work = folder / WORK
    places = {"out": folder / "out", "checkpoints": work / "checkpoints"}
    train_on_nodes(2, 1, Curves(work / "curves.jsonl", send), {**told, **places})
    return sent, load_file(folder / "out" / "model.safetensors")


def changed(told: dict[str, Any], **stage: Any) -> dict[str, Any]:  # noqa: F811
    config = told["config"]
    return {**told, "config": config.model_copy(update={"stage1": config.stage1.model_copy(update=stage)})}


@pytest.mark.slow
@pytest.mark.containers
def test_two_nodes_train_as_one_process_does(
    told: dict[str, Any],  # noqa: F811
    alone: Any,  # noqa: F811
    containers: None,
    daemon: docker.DockerClient,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    sent, weights = run(told, tmp_path)
    assert list(sent) == [1, 2, 3]
    for epoch in (1, 2, 3):
        assert sent[epoch]["stage1/loss"] == pytest.approx(alone[0][epoch]["stage1/loss"], rel=1e-5)
        assert sent[epoch]["stage1/val/all"] == alone[0][epoch]["stage1/val/all"]
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in alone[1].items()}
    assert json.loads((tmp_path / "out" / "info.json").read_text())["classes"]
    assert "stage 1" in capfd.readouterr().out, "node 0 is heard"
    assert not left_behind(daemon)
    assert not list((tmp_path / "user").rglob(NAME))


@pytest.mark.slow
@pytest.mark.containers
def test_an_error_on_a_node_is_told_in_one_line_and_ends_the_step(
    told: dict[str, Any],  # noqa: F811
    containers: None,
    daemon: docker.DockerClient,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        run(changed(told, lr=1e38), tmp_path / "nan")
    assert end.value.code == 2
    said = capfd.readouterr()
    assert said.err.startswith("error: the loss of stage 1 is no finite number in step 2 of epoch 1")
    assert said.err.count("\n") == 1 and "error: the loss" not in said.out
    assert not left_behind(daemon)
    with pytest.raises(RuntimeError, match="failed on a node"):
        run({**told, "stage": "1"}, tmp_path / "mistake")
    said = capfd.readouterr()
    assert "the last lines of node-1:" in said.err and "Traceback" in said.err
    assert not left_behind(daemon)


STEP = """
import sys, json
from pathlib import Path
from lfm.config.schema import RunConfig
from lfm.training.curves import Curves
from lfm.jobs.multinode import train_on_nodes
told = json.loads(Path(sys.argv[1]).read_text())
told["config"] = RunConfig.model_validate(told["config"])
folder, work = Path(sys.argv[2]), Path(sys.argv[2]) / sys.argv[3]
folder.joinpath("out").mkdir(parents=True, exist_ok=True)
curves = Curves(work / "curves.jsonl", lambda v, e: None)
train_on_nodes(2, 1, curves, {**told, "out": folder / "out", "checkpoints": work / "checkpoints"})
"""


@pytest.mark.slow
@pytest.mark.containers
def test_a_step_that_is_ended_goes_on_from_its_checkpoint(
    told: dict[str, Any],  # noqa: F811
    containers: None,
    daemon: docker.DockerClient,
    tmp_path: Path,
) -> None:
    """What SIGKILL leaves behind the next try removes, and goes on; SIGTERM removes the nodes at once."""
    long = changed(told, epochs=10_000)
    (tmp_path / "told.json").write_text(json.dumps({**long, "config": long["config"].model_dump()}))
    command = [sys.executable, "-uc", STEP, str(tmp_path / "told.json"), str(tmp_path / "step"), WORK]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    step = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    curves, deadline = tmp_path / "step" / WORK / "curves.jsonl", time.monotonic() + 100
    while not curves.exists() and time.monotonic() < deadline and step.poll() is None:
        time.sleep(0.1)
    step.kill()
    step.wait(60)
    assert curves.exists() and len(left_behind(daemon)) == 3, "two nodes and their network"
    again = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert again.stdout
    said = []
    for line in again.stdout:
        said.append(line)
        if "goes on from step" in line:
            break
    again.terminate()
    again.communicate(timeout=100)
    assert "goes on from step" in said[-1], said
    assert again.returncode == 143 and not left_behind(daemon)


@pytest.mark.containers
def test_an_image_that_is_not_there_is_said(
    told: dict[str, Any],  # noqa: F811
    daemon: docker.DockerClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert daemon.ping()
    monkeypatch.setenv("LFM_TRAINER_BACKEND", "container")
    for image in ("", "lfm:no-such-commit"):
        monkeypatch.setenv("LFM_IMAGE", image)
        with pytest.raises(InputError, match=r"LFM_IMAGE, an image of this version.*make image"):
            run(told, tmp_path / f"at-{len(image)}")
    monkeypatch.setenv("LFM_TRAINER_BACKEND", "moon")
    with pytest.raises(InputError, match="'moon' is none of kubernetes, container"):
        run(told, tmp_path / "moon")
