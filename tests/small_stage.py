"""A stage small enough to train in a second: learnable grey images of six classes, a long tail."""

import torch
from torch import Tensor

from lfm.backbones.towers import Preprocess
from lfm.config.presets import load
from lfm.config.schema import RunConfig
from lfm.data.images import Images

CLASSES = 6
COUNTS = [40, 24, 14, 9, 5, 3]


def config(**overrides: object) -> RunConfig:
    values: dict[str, object] = {
        "stage1.epochs": 3,
        "stage2.epochs": 2,
        "stage1.batch_size": 16,
        "stage2.batch_size": 16,
        "train.validate_every": 0,
    }
    return load("fashion-mnist-lt", values | {k.replace("__", "."): v for k, v in overrides.items()})


def images(seed: int = 0) -> Images:
    """Learnable images: each class has its own pattern under noise."""
    rng = torch.Generator().manual_seed(seed)
    label_N = torch.repeat_interleave(torch.arange(CLASSES), torch.tensor(COUNTS))
    pattern = torch.randint(0, 256, (CLASSES, 1, 12, 12), generator=torch.Generator().manual_seed(9))
    noise = torch.randint(-40, 40, (len(label_N), 1, 12, 12), generator=rng)
    pixels = (pattern[label_N] + noise).clamp(0, 255).to(torch.uint8)
    to = Preprocess(0, (0.5,), (0.3,), "bicubic", "squash")
    return Images(lambda index_B: pixels[index_B], (1, 12, 12), label_N, to, held=True)


def text() -> Tensor:
    return torch.nn.functional.normalize(torch.randn(CLASSES, 32, generator=torch.Generator().manual_seed(1)), dim=1)
