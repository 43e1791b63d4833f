"""Training in several processes: real ones, over gloo, started as the step starts them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lfm.config.presets import load
from lfm.jobs.prepare import backbone_for, dataset_for, embeddings_for
from lfm.jobs.training import train, train_together
from lfm.training.curves import Curves
from tests.test_own_data import PHOTOS, TOWER

STAGE_1 = {"stage1.lr": 1e-3, "stage1.epochs": 3, "stage1.batch_size": 9, "stage1.alpha": 0.5}
FIXED = {
    "model.weights": "random", "loss.temperature": 0.05, "train.precision": "fp32", "data.val_per_class": 3,
    "train.validate_every": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The arguments of `train`: 61 photos, a small ViT. A batch of 9 does not divide by two, nor 61 by nine."""
    base = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LFM_HOME", str(base / "home"))
        (base / "tower.json").write_text(json.dumps(TOWER))
        for (name, k), data in PHOTOS.items():
            (base / "photos" / name).mkdir(parents=True, exist_ok=True)
            (base / "photos" / name / f"{k}.jpg").write_bytes(data)
        values = {"model.tower": str(base / "tower.json"), "data.source": str(base / "photos")}
        config = load("custom", {**FIXED, **STAGE_1, **values})
        dataset, _ = dataset_for(config.data, config.model, 0)
        backbone, _ = backbone_for(config.model, 0)
        text, _ = embeddings_for(config.text, dataset, backbone)
    return {"config": config, "stage": 1, "dataset": str(dataset), "text": str(text), "backbone": str(backbone),
            "before": "", "alpha": 0.5}  # fmt: skip


def run(told: dict[str, Any], folder: Path, processes: int, **train_values: Any) -> tuple[dict[int, Any], Any]:
    """Curves by epoch and weights."""
    config = told["config"]
    config = config.model_copy(
        update={"train": config.train.model_copy(update={"processes": processes, **train_values})}
    )
    (folder / "out").mkdir(parents=True)
    sent: dict[int, Any] = {}

    def send(values: Any, epoch: int) -> None:
        assert epoch not in sent, "each point once"
        sent[epoch] = dict(values)

    curves = Curves(folder / "work" / "curves.jsonl", send)
    places = {"out": folder / "out", "checkpoints": folder / "work" / "checkpoints"}
    if processes == 1:
        train(log=curves.log, **{**told, "config": config}, **places)
    else:
        train_together(processes, curves, {**told, "config": config, **places})
    return sent, load_file(folder / "out" / "model.safetensors")


@pytest.fixture(scope="module")
def alone(told: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, Any], Any]:
    return run(told, tmp_path_factory.mktemp("alone"), 1)


@pytest.mark.slow
def test_two_processes_train_as_one_does(told: dict[str, Any], alone: Any, tmp_path: Path) -> None:
    """The same global batches: losses and scores agree, and each validation image counts once."""
    together = run(told, tmp_path, 2)
    assert list(together[0]) == list(alone[0]) == [1, 2, 3]
    for epoch in (1, 2, 3):
        one, two = alone[0][epoch], together[0][epoch]
        assert two["stage1/loss"] == pytest.approx(one["stage1/loss"], rel=1e-5)
        for group in ("all", "medium"):
            assert two[f"stage1/val/{group}"] == one[f"stage1/val/{group}"]
    assert together[1].keys() == alone[1].keys()
    start = load_file(Path(told["backbone"]) / "model.safetensors")["visual.conv1.weight"]
    moved = (alone[1]["image.conv1.weight"] - start).abs().max()
    for name, value in alone[1].items():
        gap = (value - together[1][name]).abs()
        if name.endswith("in_proj_bias"):  # Adam turns the key's gradient, nought but for rounding, into steps
            gap = torch.cat([gap.chunk(3)[0], gap.chunk(3)[2]])
        assert gap.mean() < 1e-4 * moved, name


@pytest.mark.slow
def test_processes_that_share_the_weights_train_as_one_does(told: dict[str, Any], alone: Any, tmp_path: Path) -> None:
    """FSDP, with activations computed again: the same losses and scores, and whole weights at the end."""
    together = run(told, tmp_path, 2, shard=True, recompute=True)
    for epoch in (1, 2, 3):
        one, two = alone[0][epoch], together[0][epoch]
        assert two["stage1/loss"] == pytest.approx(one["stage1/loss"], rel=1e-5)
        assert two["stage1/val/all"] == one["stage1/val/all"]
    assert {k: v.shape for k, v in together[1].items()} == {k: v.shape for k, v in alone[1].items()}


@pytest.mark.slow
def test_more_processes_than_a_last_batch_has_images(told: dict[str, Any], alone: Any, tmp_path: Path) -> None:
    """61 images in batches of 10: the last has one image, for three processes."""
    config = told["config"]
    config = config.model_copy(update={"stage1": config.stage1.model_copy(update={"batch_size": 10, "epochs": 1})})
    one, _ = run({**told, "config": config}, tmp_path / "one", 1)
    three, _ = run({**told, "config": config}, tmp_path / "three", 3)
    assert three[1]["stage1/loss"] == pytest.approx(one[1]["stage1/loss"], rel=1e-5)


KILLED = """
import sys, json
from pathlib import Path
from lfm.config.schema import RunConfig
from lfm.training.curves import Curves
from lfm.jobs.training import train_together
if __name__ == "__main__":
    told = json.loads(Path(sys.argv[1]).read_text())
    told["config"] = RunConfig.model_validate(told["config"])
    folder = Path(sys.argv[2])
    (folder / "out").mkdir(parents=True, exist_ok=True)
    curves = Curves(folder / "work" / "curves.jsonl", lambda v, e: None)
    train_together(2, curves, {**told, "out": folder / "out", "checkpoints": folder / "work" / "checkpoints"})
"""


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_killed_and_resumed_two_processes_end_in_the_same_weights(
    told: dict[str, Any], shard: bool, tmp_path: Path
) -> None:
    config = told["config"]
    train_values = config.train.model_copy(update={"processes": 2, "checkpoint_steps": 3, "shard": shard})
    stage = config.stage1.model_copy(update={"epochs": 6 if shard else 25})
    config = config.model_copy(update={"train": train_values, "stage1": stage})
    (tmp_path / "told.json").write_text(json.dumps({**told, "config": config.model_dump()}))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "told.json")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    whole = subprocess.run([*command, str(tmp_path / "whole")], env=environment, capture_output=True, timeout=200)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    process = subprocess.Popen(
        [*command, str(tmp_path / "killed")], env=environment, start_new_session=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    checkpoints, deadline = tmp_path / "killed" / "work" / "checkpoints", time.monotonic() + 100
    while not list(checkpoints.glob("step-00000003*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None and list(checkpoints.glob("step-*"))
    ranks = subprocess.run(["pgrep", "-f", str(tmp_path / "killed")], capture_output=True, text=True).stdout.split()
    for pid in ranks:
        os.kill(int(pid), signal.SIGKILL)
    process.wait(30)
    again = subprocess.run([*command, str(tmp_path / "killed")], env=environment, capture_output=True, timeout=200)
    assert again.returncode == 0 and b"goes on from step" in again.stdout, again.stdout + again.stderr
    assert again.stdout.count(b"goes on from step") == 1, "one process speaks"
    first, second = (load_file(tmp_path / name / "out" / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_an_error_in_the_processes_is_told_and_ends_the_step(
    told: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = told["config"]
    broken = config.model_copy(update={"stage1": config.stage1.model_copy(update={"lr": 1e38})})
    with pytest.raises(SystemExit) as end:
        run({**told, "config": broken}, tmp_path / "nan", 2)
    assert end.value.code == 2
    said = capfd.readouterr().err
    assert "error: the loss of stage 1 is no finite number in step 2 of epoch 1" in said
    assert re.search(r"Its images: [\w ]+/\d+\.jpg with [\w ]+/\d+\.jpg, ", said)
    with pytest.raises(Exception, match=r"rank|FAILED|exitcode"):
        run({**told, "dataset": "/nonexistent", "text": "/nonexistent"}, tmp_path / "mistake", 2)
    assert "Traceback" in capfd.readouterr().err
