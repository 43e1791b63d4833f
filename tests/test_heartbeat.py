"""Training on other machines ends when the step that started it is gone."""

import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lfm.training.heartbeat import beating
from lfm.training.task import WorkerTask
from tests.small_task import changed

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.slow
def test_training_ends_with_a_checkpoint_once_its_step_gives_no_sign_of_life(
    small_task: WorkerTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lfm.training.heartbeat.BEAT_SECONDS", 0.2)
    task = changed(small_task, "stage1", epochs=100_000)
    task = replace(task, work=tmp_path / "work", out=tmp_path / "out", silence=3.0)
    task.out.mkdir()
    command = [sys.executable, "-m", "lfm.training.worker", str(task.write(task.work))]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    with beating(task.heartbeat):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not task.curves.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(5)
        assert process.poll() is None, "as long as its step lives, longer than the silence that it bears"
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert re.fullmatch(r"error: the step that started this training .* no sign of life for 3 s: it ends", errors[0])
    assert re.search(r"it resumes from step \d+$", errors[1]) and len(errors) == 2
    assert list(task.checkpoints.glob("step-*"))


def test_the_step_counts_while_it_waits_and_not_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lfm.training.heartbeat.BEAT_SECONDS", 0.01)
    file, seen = tmp_path / "heartbeat", set[str]()
    with beating(file):
        deadline = time.monotonic() + 10
        while len(seen) < 5 and time.monotonic() < deadline:
            if file.exists():
                seen.add(file.read_text())
    assert len(seen) >= 5
    last = file.read_text()
    time.sleep(0.1)
    assert file.read_text() == last
