"""Training on several machines: containers stand in for them (tests/container_backend.py)."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from lfm.jobs.multinode import train_on_nodes
from lfm.storage.artifact import content_key
from lfm.training.task import WorkerTask
from tests.container_backend import Containers
from tests.containers import ROOT, build
from tests.small_task import Trained, changed

PROGRAM = ROOT / "tests" / "programs" / "train_task.py"
WORK = content_key("test_nodes")
NAME = f"lfm-stage1-{WORK[:12]}"


@pytest.fixture(scope="module")
def image(daemon: docker.DockerClient) -> str:
    """An image of this version."""
    assert daemon.ping()
    return build(ROOT).image


@pytest.fixture(autouse=True)
def user_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, so that what stays behind in it is seen."""
    folder = tmp_path / "user"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("LFM_HOME", str(tmp_path / "home"))
    return folder


def left_behind(daemon: docker.DockerClient) -> list[str]:
    found = [*daemon.containers.list(all=True), *daemon.networks.list()]
    return [each.name for each in found if each.name.startswith(NAME)]


def train(task: WorkerTask, image: str, folder: Path) -> Trained:
    """Train on two nodes."""
    trained = Trained(replace(task, work=folder / WORK, out=folder / "out", processes=2))
    train_on_nodes(trained.task, 2, trained.curves, Containers(image, trained.task.work))
    return trained


@pytest.mark.slow
@pytest.mark.containers
def test_two_nodes_train_as_one_process_does(
    small_task: WorkerTask,
    trained_alone: Trained,
    image: str,
    user_home: Path,
    daemon: docker.DockerClient,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    trained = train(small_task, image, tmp_path)
    assert list(trained.sent) == [1, 2, 3]
    for epoch in (1, 2, 3):
        one, two = trained_alone.sent[epoch], trained.sent[epoch]
        assert two["stage1/loss"] == pytest.approx(one["stage1/loss"], rel=1e-5)
        assert two["stage1/val/all"] == one["stage1/val/all"]
    shapes = [{k: v.shape for k, v in run.weights.items()} for run in (trained, trained_alone)]
    assert shapes[0] == shapes[1]
    assert json.loads((tmp_path / "out" / "info.json").read_text())["classes"]
    assert "stage 1" in capfd.readouterr().out, "node 0's log is passed on"
    assert not left_behind(daemon)
    assert not list(user_home.rglob(NAME))


@pytest.mark.slow
@pytest.mark.containers
def test_an_error_on_a_node_is_reported_in_one_line_and_ends_the_step(
    small_task: WorkerTask,
    image: str,
    daemon: docker.DockerClient,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        train(changed(small_task, "stage1", lr=1e38), image, tmp_path / "nan")
    assert end.value.code == 2
    shown = capfd.readouterr()
    assert shown.err.startswith("error: the loss of stage 1 is not finite in step 2 of epoch 1")
    assert shown.err.count("\n") == 1 and "error: the loss" not in shown.out
    assert not left_behind(daemon)
    with pytest.raises(RuntimeError, match="failed on a node"):
        train(replace(small_task, stage=3), image, tmp_path / "mistake")
    shown = capfd.readouterr()
    assert "the last lines of node-1:" in shown.err and "Traceback" in shown.err
    assert not left_behind(daemon)


@pytest.mark.slow
@pytest.mark.containers
def test_a_step_that_is_ended_resumes_from_its_checkpoint(
    small_task: WorkerTask, image: str, daemon: docker.DockerClient, tmp_path: Path
) -> None:
    """What SIGKILL leaves behind, the next try removes, and resumes; SIGTERM removes the nodes at once."""
    task = changed(small_task, "stage1", epochs=10_000)
    task = replace(task, processes=2, work=tmp_path / "step" / WORK, out=tmp_path / "step" / "out")
    command = [sys.executable, "-u", str(PROGRAM), "containers", str(task.write(tmp_path)), image]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    step = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not task.curves.exists() and time.monotonic() < deadline and step.poll() is None:
        time.sleep(0.1)
    step.kill()
    step.wait(60)
    assert task.curves.exists() and len(left_behind(daemon)) == 3, "two nodes and their network"
    again = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert again.stdout
    shown = []
    for line in again.stdout:
        shown.append(line)
        if "resumes from step" in line:
            break
    again.terminate()
    again.communicate(timeout=100)
    assert "resumes from step" in shown[-1], shown
    assert again.returncode == 143 and not left_behind(daemon)
