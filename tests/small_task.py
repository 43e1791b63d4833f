"""A training task small enough to train in seconds: stage 1 of a small ViT on 61 photos.

A batch of 9 images does not divide by two, nor 61 images by nine.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from lfm.config.presets import load
from lfm.jobs.launch import launch
from lfm.jobs.prepare import backbone_for, dataset_for, embeddings_for
from lfm.storage.import_closure import source_hash
from lfm.training.curves import Curves
from lfm.training.task import METHOD, WorkerTask
from tests.photos import PHOTOS, TOWER

VALUES = {
    "stage1.lr": 1e-3, "stage1.epochs": 3, "stage1.batch_size": 9, "stage1.alpha": 0.5, "model.weights": "random",
    "loss.temperature": 0.05, "train.precision": "fp32", "data.val_per_class": 3, "train.validate_every": 1,
}  # fmt: skip


def make_task(base: Path) -> WorkerTask:
    """The task for one process, with everything it needs under a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LFM_HOME", str(base / "home"))
        (base / "tower.json").write_text(json.dumps(TOWER))
        for (name, k), data in PHOTOS.items():
            (base / "photos" / name).mkdir(parents=True, exist_ok=True)
            (base / "photos" / name / f"{k}.jpg").write_bytes(data)
        places = {"model.tower": str(base / "tower.json"), "data.source": str(base / "photos")}
        config = load("custom", VALUES | places)
        dataset, _ = dataset_for(config.data, config.model, 0)
        backbone, _ = backbone_for(config.model, 0)
        text, _ = embeddings_for(config.text, dataset, backbone)
    return WorkerTask(
        config=config, stage=1, alpha=0.5, dataset=dataset, text=text, backbone=backbone, previous=None,
        work=base / "work", out=base / "out", processes=1, remote=None, code=source_hash(*METHOD),
    )  # fmt: skip


def changed(task: WorkerTask, section: str, **values: Any) -> WorkerTask:
    """The task with other values in a section of its configuration."""
    part = getattr(task.config, section).model_copy(update=values)
    return replace(task, config=task.config.model_copy(update={section: part}))


class Trained:
    """Curves and weights of a task that was trained.

    Args:
        task: its `out` holds the weights.
    """

    def __init__(self, task: WorkerTask) -> None:
        task.out.mkdir(parents=True)
        self.task = task
        self.sent: dict[int, dict[str, float]] = {}
        self.curves = Curves(task.curves, self._send)

    def _send(self, values: Any, epoch: int) -> None:
        assert epoch not in self.sent, "each point once"
        self.sent[epoch] = dict(values)

    @property
    def weights(self) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = load_file(self.task.out / "model.safetensors")
        return weights


def train(task: WorkerTask, folder: Path, processes: int = 1) -> Trained:
    """Train on this machine, with work and results in a folder."""
    trained = Trained(replace(task, work=folder / "work", out=folder / "out", processes=processes))
    launch(trained.task, trained.curves)
    return trained
