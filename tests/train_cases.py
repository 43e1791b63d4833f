"""A stage of a small model, trained."""

import os
import subprocess
from pathlib import Path

from torch import Tensor

from lfm.backbones.model import LFM, conv4
from lfm.config.schema import RunConfig
from lfm.training.loop import Stage
from tests import warm
from tests.small_stage import images, text

REPOSITORY = Path(__file__).parents[1]


def train(
    settings: RunConfig, folder: Path, number: int = 1, model: LFM | None = None
) -> tuple[LFM, list[dict[str, float]]]:
    model = model or LFM(conv4(1, 32, settings.seed), text())
    logged: list[dict[str, float]] = []
    stage = Stage(number, settings, model, images(), images(1), folder, lambda v, _: logged.append(dict(v)), 0.5)
    stage.run()
    return model, logged


def state(model: LFM) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def start(folder: Path, out: Path, stage: int, **values: object) -> subprocess.Popen[str]:
    """A process that trains a stage, with its output in one pipe."""
    settings = [f"{name.replace('__', '.')}={value}" for name, value in values.items()]
    command = [*warm.program("train_stage.py"), str(stage), str(folder), str(out), *settings]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
