"""Training in several processes: real ones, over gloo, started as the step starts them."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lfm.training.task import WorkerTask
from tests.small_task import Trained, changed, train

REPOSITORY = Path(__file__).parents[1]
PROGRAM = REPOSITORY / "tests" / "programs" / "train_task.py"


@pytest.mark.slow
def test_a_task_is_read_as_it_was_written(small_task: WorkerTask, tmp_path: Path) -> None:
    for task in (small_task, replace(small_task, stage=2, previous=tmp_path, remote="s3://bucket/work", processes=8)):
        assert WorkerTask.read(task.write(tmp_path / "new")) == task


@pytest.mark.slow
def test_two_processes_train_as_one_does(small_task: WorkerTask, trained_alone: Trained, tmp_path: Path) -> None:
    """The same global batches: losses and scores agree, and each validation image counts once."""
    together = train(small_task, tmp_path, 2)
    assert list(together.sent) == list(trained_alone.sent) == [1, 2, 3]
    for epoch in (1, 2, 3):
        one, two = trained_alone.sent[epoch], together.sent[epoch]
        assert two["stage1/loss"] == pytest.approx(one["stage1/loss"], rel=1e-5)
        for group in ("all", "medium"):
            assert two[f"stage1/val/{group}"] == one[f"stage1/val/{group}"]
    weights = together.weights
    assert weights.keys() == trained_alone.weights.keys()
    start = load_file(small_task.backbone / "model.safetensors")["visual.conv1.weight"]
    moved = (trained_alone.weights["image.conv1.weight"] - start).abs().max()
    for name, value in trained_alone.weights.items():
        gap = (value - weights[name]).abs()
        if name.endswith("in_proj_bias"):  # Adam turns the key's gradient, nought but for rounding, into steps
            gap = torch.cat([gap.chunk(3)[0], gap.chunk(3)[2]])
        assert gap.mean() < 1e-4 * moved, name


@pytest.mark.slow
def test_more_processes_than_a_last_batch_has_images(small_task: WorkerTask, tmp_path: Path) -> None:
    """61 images in batches of 10: the last has one image, for three processes."""
    task = changed(small_task, "stage1", batch_size=10, epochs=1)
    one, three = train(task, tmp_path / "one"), train(task, tmp_path / "three", 3)
    assert three.sent[1]["stage1/loss"] == pytest.approx(one.sent[1]["stage1/loss"], rel=1e-5)


@pytest.mark.slow
def test_killed_and_resumed_two_processes_end_in_the_same_weights(small_task: WorkerTask, tmp_path: Path) -> None:
    task = changed(changed(small_task, "train", checkpoint_steps=3), "stage1", epochs=25)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}

    def command(name: str) -> list[str]:
        folder = tmp_path / name
        file = replace(task, processes=2, work=folder / "work", out=folder / "out").write(folder)
        return [sys.executable, str(PROGRAM), "processes", str(file)]

    whole = subprocess.run(command("whole"), env=environment, capture_output=True, timeout=200)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    process = subprocess.Popen(
        command("killed"), env=environment, start_new_session=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    checkpoints, deadline = tmp_path / "killed" / "work" / "checkpoints", time.monotonic() + 100
    while not list(checkpoints.glob("step-00000003*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None and list(checkpoints.glob("step-*"))
    workers = subprocess.run(["pgrep", "-f", str(tmp_path / "killed")], capture_output=True, text=True).stdout.split()
    for pid in workers:
        os.kill(int(pid), signal.SIGKILL)
    process.wait(30)
    again = subprocess.run(command("killed"), env=environment, capture_output=True, timeout=200)
    assert again.returncode == 0 and b"resumes from step" in again.stdout, again.stdout + again.stderr
    assert again.stdout.count(b"resumes from step") == 1, "one process speaks"
    first, second = (load_file(tmp_path / name / "out" / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_sigterm_reaches_the_processes_and_ends_the_step_without_a_traceback(
    small_task: WorkerTask, tmp_path: Path
) -> None:
    task = replace(
        changed(small_task, "stage1", epochs=100_000), processes=2, work=tmp_path / "work", out=tmp_path / "out"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), "processes", str(task.write(tmp_path))]
    step = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 150
    while not task.curves.exists() and step.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    step.terminate()
    _, err = step.communicate(timeout=100)
    assert step.returncode == 143 and "Traceback" not in err, err
    (checkpoint,) = task.checkpoints.glob("step-*")
    assert f"it resumes from step {int(checkpoint.name[5:])}\n" in err


@pytest.mark.slow
def test_an_error_in_the_processes_is_reported_and_ends_the_step(
    small_task: WorkerTask, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        train(changed(small_task, "stage1", lr=1e38), tmp_path / "nan", 2)
    assert end.value.code == 2
    shown = capfd.readouterr().err
    assert "error: the loss of stage 1 is not finite in step 2 of epoch 1" in shown
    assert re.search(r"Its images: [\w ]+/\d+\.jpg with [\w ]+/\d+\.jpg, ", shown)
    nowhere = Path("/nonexistent")
    with pytest.raises(Exception, match=r"rank|FAILED|exitcode"):
        train(replace(small_task, dataset=nowhere, text=nowhere), tmp_path / "mistake", 2)
    assert "Traceback" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        train(replace(small_task, code="another"), tmp_path / "other", 2)
    assert "holds another version of LFM" in capfd.readouterr().err
