"""The row of benchmarks/speed.py about checkpoints: what it costs training that they are written beside it."""

import io
import statistics
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from benchmarks.measure import Row, finished, row
from benchmarks.training import BATCH, tower
from lfm.config.schema import RunConfig, TowerStageConfig, TrainConfig
from lfm.data.images import Images
from lfm.method.mixup import PairBatch
from lfm.training.loop import Stage

CHECKPOINTS = 3


def checkpoint_row(goal: float, images: Images, every: int, name: str, folder: Path) -> Row:
    """Images per second of `Stage.run` with a checkpoint a minute, beside the same without.

    Some checkpoints are written and the steps timed. What the steps that met one took longer than the others is its
    cost; one such cost a minute is taken off the speed without.

    Args:
        goal: ratio.
        images: some of every class; 32 times `every` of them.
        every: steps between two checkpoints, some more than meet one.
        name: of the tower.
        folder: on the disk that is meant.
    """
    taken: dict[bool, list[float]] = {True: [], False: []}
    written: list[float] = []

    class Timed(Stage):
        """A stage that notes for each step how long it took, and whether it met a checkpoint."""

        began, met = 0.0, True

        def step(self, batch: PairBatch, pixels: Tensor | None, step: int) -> Tensor:
            now = finished()
            if step > 1:  # the first is slow
                taken[self.met].append(now - self.began)
            self.began, self.met = now, self.writer.busy()
            loss = super().step(batch, pixels, step)
            finished()
            return loss

        def _save(self) -> None:
            self.met = True
            super()._save()

    values = TowerStageConfig(epochs=1 + CHECKPOINTS, lr=1e-6, batch_size=BATCH)
    train = TrainConfig(validate_every=0, checkpoint_minutes=1e9, checkpoint_steps=every)
    config = RunConfig(preset="speed", stage1=values, train=train)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as place, redirect_stdout(io.StringIO()):
        stage = Timed(
            1, config, tower(images.device, name), images, images, Path(place), lambda *_: None, 1.0,
            lambda path: written.append(sum(file.stat().st_size for file in path.iterdir())),
        )  # fmt: skip
        stage.run()
    alone = statistics.median(taken[False])
    cost = (sum(taken[True]) - len(taken[True]) * alone) / CHECKPOINTS
    slower = statistics.mean(taken[True]) / alone
    part = f"stage 1 with a checkpoint a minute, {name} ({written[0] / 1e9:.2g} GB: {cost:.2g} s each, steps meanwhile"
    without = BATCH / alone
    return row(f"{part} {slower:.2g} x)", without, without * (1 - cost / 60), "images/s", goal, "without")
