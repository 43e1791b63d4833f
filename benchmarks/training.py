"""The rows of benchmarks/speed.py that train and validate: a step, the whole loop, validation in stage 2."""

import io
import json
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from benchmarks.measure import DIM, Row, finished, row, seconds, unit_rows, utilisation
from lfm.backbones.device import use_bf16
from lfm.backbones.model import LFM
from lfm.backbones.openclip import build_image_tower
from lfm.config.schema import HeadStageConfig, RunConfig, TowerStageConfig, TrainConfig
from lfm.data.images import Images
from lfm.evaluation.inference import score_split
from lfm.method.mixup import PairBatch
from lfm.training.loop import Stage
from lfm.training.memory import FrozenWeights

BATCH = 32
TOWER, SMALL = "ViT-B/32", "a small ViT"


def tower(device: torch.device, name: str = TOWER) -> LFM:
    """ViT-B/32 of the paper, or a small one, random weights."""
    spec = find_spec("open_clip")
    assert spec and spec.origin
    config = json.loads((Path(spec.origin).parent / "model_configs" / "ViT-B-32.json").read_text())
    if name == SMALL:
        config["vision_cfg"] |= {"layers": 1, "width": 64}
    torch.manual_seed(0)
    return LFM(build_image_tower(config), unit_rows(100)).to(device).to(memory_format=torch.channels_last)


def stepper(model: LFM, stage: int, fast: bool) -> Callable[[], None]:
    """Forward, backward and optimizer step on a fixed batch: the bare model, in bf16 or as it is usually written."""
    device = model.text_CD.device
    x = torch.randn(BATCH, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)
    x = x.to(torch.bfloat16 if fast else torch.float32, memory_format=torch.channels_last)
    label_B = torch.arange(BATCH, device=device)
    trained = model.train_stage(stage)
    if not fast:
        model.train()
    elif stage == 2:
        FrozenWeights(model.image, cast=True)
    optimizer = torch.optim.Adam(trained, lr=1e-6, fused=fast)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            loss = F.cross_entropy(model(x), label_B)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def step_row(stage: int, goal: float, device: torch.device, at_least: float, name: str) -> Row:
    """Images per second of a training step on a fixed batch of 32."""
    reference = seconds(stepper(tower(device, name), stage, False), at_least)
    step = stepper(tower(device, name), stage, use_bf16("auto", device))
    ours = seconds(step, at_least)
    found = row(f"stage {stage} step, {name}, batch {BATCH}", BATCH / reference, BATCH / ours, "images/s", goal)
    return replace(found, mfu=utilisation(step, ours))


def loop_row(stage: int, goal: float, images: Images, epochs: int, name: str) -> Row:
    """Images per second of `Stage.run`, against the bare model: a step of the one, a step of the other, in turns.

    What the loop does between steps, at the end of epochs too, counts as the loop's.

    Args:
        stage: 1 or 2.
        goal: ratio.
        images: of an epoch, some of every class, a multiple of 32.
        epochs: measured, after one to warm up.
        name: of the tower.
    """
    device = images.device
    bare = stepper(tower(device, name), stage, use_bf16("auto", device))
    taken: dict[str, list[float]] = {"loop": [], "bare": []}

    class Interleaved(Stage):
        """A stage that waits for a step of the bare model after each of its own."""

        began = 0.0

        def step(self, batch: PairBatch, pixels: Tensor | None, step: int) -> Tensor:
            loss = super().step(batch, pixels, step)
            over = finished()
            taken["loop"].append(over - self.began)
            bare()
            self.began = finished()
            taken["bare"].append(self.began - over)
            return loss

    first = TowerStageConfig(epochs=1 + epochs, lr=1e-6, batch_size=BATCH)
    second = HeadStageConfig(epochs=1 + epochs, lr=1e-6, batch_size=BATCH)
    quiet = TrainConfig(validate_every=0, checkpoint_minutes=1e9)
    config = RunConfig(preset="speed", stage1=first, stage2=second, train=quiet)
    # Without its progress bar; checkpoints are written only when it is ended in the middle.
    with redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as place:
        Interleaved(stage, config, tower(device, name), images, images, Path(place), lambda *_: None, 1.0).run()
    warm = len(images) // BATCH
    loop, alone = (BATCH / float(np.mean(taken[kind][warm:])) for kind in ("loop", "bare"))
    return row(f"stage {stage}, whole loop over the bare model, {name}", alone, loop, "images/s", goal, "bare model")


def validation_row(images: Images, measured: int, at_least: float, name: str) -> Row:
    """Seconds to score the images in stage 2 once their features are kept; the goal is 1 s.

    The reference sends all of them through the tower in fp32: `measured` are, and the time is scaled.
    """
    model = tower(images.device, name).eval()

    @torch.no_grad()
    def through() -> None:
        for index_B in torch.arange(measured).split(BATCH):
            model(images.exact(index_B))

    reference = seconds(through, 0) * len(images) / measured
    features = torch.randn(len(images), DIM, generator=torch.Generator().manual_seed(0)).to(images.device)
    config = RunConfig(preset="speed")
    ours = seconds(lambda: score_split(model, images, images.label_N, config, features, confused=False), at_least)
    part = f"validation in stage 2 after the first, {len(images):,} images, {name}"
    return row(f"{part} (reference: {measured} measured, scaled)", reference, ours, "s", reference / 1.0)
