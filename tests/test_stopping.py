"""Ctrl-C in the middle of a run: it ends at once, with no traceback and no run open, and goes on from there."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests import warm

SMALL = [
    "data.max_per_class=60", "data.imbalance=10", "stage1.epochs=2000", "stage2.epochs=1", "stage1.batch_size=16",
    "train.checkpoint_minutes=1e9",
]  # fmt: skip
SECONDS = 15.0
"""Two where the machine does nothing else; it may be busy with other tests."""


@pytest.fixture(scope="module")
def home(home_with_data: Path) -> Path:
    return home_with_data


class Command:
    """`lfm` as a shell starts it, in a group of processes of its own.

    Args:
        home: LFM_HOME.
        arguments: of `lfm`.
        changes: fields of the configuration.
    """

    def __init__(self, home: Path, *arguments: str, changes: tuple[str, ...] = ()) -> None:
        sets = [part for change in (*SMALL, *changes) for part in ("--set", change)]
        self.process = subprocess.Popen(
            [str(warm.INSTALLED), *arguments, "--home", str(home), *sets],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
        )  # fmt: skip
        self.shown = ""

    def wait_for(self, text: str) -> None:
        assert self.process.stdout
        while not re.search(text, self.shown):
            line = self.process.stdout.readline()
            assert line, self.shown + (self.process.stderr.read() if self.process.stderr else "")
            self.shown += line

    def ctrl_c(self) -> float:
        """What a terminal does: SIGINT for the whole group; the seconds until the command has ended."""
        began = time.monotonic()
        os.killpg(self.process.pid, signal.SIGINT)
        out, err = self.process.communicate(timeout=60)
        took = time.monotonic() - began
        assert self.process.returncode == 130 and "the same command continues from here" in err, out + err
        assert "Traceback" not in out + err and "KeyboardInterrupt" not in out + err, err
        until = time.monotonic() + SECONDS  # one that was just killed is seen until the system has taken it away
        while processes_of(self.process.pid) and time.monotonic() < until:
            time.sleep(0.1)
        assert not processes_of(self.process.pid), "no step stays"
        return took


def processes_of(session: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(its) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def statuses(home: Path) -> list[str]:
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    where = [experiment.experiment_id for experiment in client.search_experiments()]
    return [run.info.status for run in client.search_runs(where)]


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.0, 2.5])
def test_before_any_step(seconds: float, home: Path) -> None:
    command = Command(home, "run", "fashion-mnist-lt")
    time.sleep(seconds)
    assert command.ctrl_c() < SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_in_training_a_checkpoint_is_written_and_the_runs_are_closed(processes: int, home: Path) -> None:
    changes = (f"train.processes={processes}",)
    command = Command(home, "run", "fashion-mnist-lt", changes=changes)
    command.wait_for(r"stage 1 .*[1-9][0-9]*/\d")
    assert command.ctrl_c() < SECONDS
    (checkpoint,) = home.glob("work/*/checkpoints/step-*")
    assert "RUNNING" not in statuses(home) and "KILLED" in statuses(home)
    again = Command(home, "run", "fashion-mnist-lt", changes=changes)
    again.wait_for(rf"stage 1 resumes from step {int(checkpoint.name[5:])}\b")
    assert again.ctrl_c() < SECONDS
    assert "RUNNING" not in statuses(home)
    shutil.rmtree(home / "work")


@pytest.mark.slow
def test_in_a_sweep_all_steps_end(home: Path) -> None:
    command = Command(home, "sweep", "fashion-mnist-lt", "--parallel", "2", "--seeds", "1")
    command.wait_for(r"(?s)(stage 1 .*[1-9][0-9]*/\d.*){2}")
    assert command.ctrl_c() < SECONDS
    assert "RUNNING" not in statuses(home)
