"""Checkpoints are written beside the training: it waits for no disk, and ends at once when it is asked to."""

import errno
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lfm.backbones.model import LFM, conv4
from lfm.training.loop import Stage
from lfm.training.preemption import PreemptedError
from tests.small_stage import config, images, text

OFTEN = {"train__checkpoint_minutes": 1e-4, "train__precision": "fp32", "stage1__epochs": 5}
"""A checkpoint is due after each step."""
Log = Callable[[Mapping[str, float], int], None]


class Disk:
    """Where checkpoints are written to, of which this one holds all but the first few."""

    def __init__(self, quick: int) -> None:
        self.quick, self.begun, self.now, self.most = quick, 0, 0, 0
        self.free = threading.Event()
        self.waited_for = False

    def save(self, tensors: dict[str, Any], path: Path) -> None:
        self.begun += 1
        self.now += 1
        self.most = max(self.most, self.now)
        if self.begun > self.quick and not self.free.wait(100):
            self.waited_for = True
        save_file(tensors, path)
        self.now -= 1


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Disk]]:
    """Make the disk slow after so many checkpoints."""
    disks: list[Disk] = []

    def make(quick: int) -> Disk:
        disks.append(Disk(quick))
        monkeypatch.setattr("lfm.training.checkpoints.save_file", disks[-1].save)
        return disks[-1]

    yield make
    for disk in disks:
        disk.free.set()


def train(folder: Path, log: Log = lambda values, epoch: None, **values: object) -> dict[str, torch.Tensor]:
    model = LFM(conv4(1, 32, 0), text())
    Stage(1, config(**{**OFTEN, **values}), model, images(), images(1), folder, log, 0.5).run()
    return model.state_dict()


def test_training_goes_on_while_one_checkpoint_is_written_of_the_step_where_it_began(
    slow: Callable[[int], Disk], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = slow(0)
    begun: list[int] = []

    def log(values: Mapping[str, float], epoch: int) -> None:
        begun.append(disk.begun)
        if epoch == 4:
            disk.free.set()

    whole = train(tmp_path, log)
    assert not disk.waited_for and disk.most == 1, "no step waits, no two are written at once"
    assert begun[:4] == [1] * 4 and not list(tmp_path.glob(".*"))
    first, *later = sorted(tmp_path.glob("step-*"))
    for folder in later:
        shutil.rmtree(folder)
    resumed = train(tmp_path)
    assert f"resumes from step {int(first.name[5:])}" in capsys.readouterr().out
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_checkpoint_by_number_of_steps_is_not_left_out(tmp_path: Path) -> None:
    train(tmp_path, train__checkpoint_minutes=1e9, train__checkpoint_steps=2, train__keep_checkpoints=99)
    steps = [int(folder.name[5:]) for folder in sorted(tmp_path.glob("step-*"))]
    assert steps == list(range(2, 2 * len(steps) + 1, 2)) and len(steps) > 10


def test_a_full_disk_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("lfm.training.checkpoints.save_file", full)
    epochs: list[int] = []
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path, lambda values, epoch: epochs.append(epoch), stage1__epochs=1000)
    assert len(epochs) < 100, "and at once"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_training_that_is_asked_to_stop_waits_half_a_second_for_a_checkpoint(
    slow: Callable[[int], Disk], number: signal.Signals, tmp_path: Path
) -> None:
    """A step of Kubeflow Pipelines is killed a second after SIGTERM."""
    disk = slow(1)
    asked = 0.0

    def log(values: Mapping[str, float], epoch: int) -> None:
        nonlocal asked
        if disk.begun == 2 and not asked:
            asked = time.monotonic()
            signal.raise_signal(number)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(PreemptedError) as stopped:
            train(tmp_path, log, stage1__epochs=1000)
    finally:
        signal.signal(signal.SIGINT, before)
    took = time.monotonic() - asked
    (complete,) = tmp_path.glob("step-*")
    assert re.search(rf"asked to stop at step \d+; it resumes from step {int(complete.name[5:])}$", str(stopped.value))
    assert 0.5 <= took < 2 and disk.begun == 2
    disk.free.set()


def test_the_last_checkpoint_is_written_only_if_that_is_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def log(values: Mapping[str, float], epoch: int) -> None:
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(PreemptedError, match=r"at step 6; it resumes from step 6$"):
        train(tmp_path / "small", log, train__checkpoint_minutes=1e9)
    monkeypatch.setattr("lfm.training.checkpoint_writer.ASSUMED_RATE", 1.0)
    with pytest.raises(PreemptedError, match=r"at step 6; it starts over$"):
        train(tmp_path / "large", log, train__checkpoint_minutes=1e9)
    assert not list((tmp_path / "large").glob("*"))


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    def log(values: Mapping[str, float], epoch: int) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, log)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_a_killed_process_had_begun_to_write_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-000000004.0123abcd.tmp").mkdir()
    train(tmp_path, stage1__epochs=1)
    assert not list(tmp_path.glob(".*"))
