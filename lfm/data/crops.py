"""Random parts of training images, resized to the tower's size, a whole batch at a time.

Letters in the names give shapes: B images, 4 top, left, height and width of a part in pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

LEAST_AREA = 0.08
RATIOS = (3 / 4, 4 / 3)
TRIES = 10
"""Draws of a part that may not fit, after which it is the middle of the image; all as in Szegedy et al. 2015."""


@dataclass(frozen=True)
class Crop:
    """How parts are drawn.

    Args:
        kind: random or growing (`lfm.config.schema.TrainConfig.crop`).
        done: share of the stage that is done, 0 to 1.
    """

    kind: str
    done: float

    @property
    def least_area(self) -> float:
        """Least share of an image's area that a part has: growing, from 8 % at the start to all at the end."""
        grown = 0.0 if self.kind == "random" else 1 - math.sqrt(1 - self.done**2)
        return LEAST_AREA + (1 - LEAST_AREA) * grown

    def boxes(self, size: Sequence[int], count: int, rng: torch.Generator) -> Tensor:
        """Parts of images of one size, (height, width). (B, 4) int64.

        random: of uniform area and log-uniform ratio of width to height; growing: squares of uniform area.
        """
        height, width = size
        area_TB, ratio_TB, top_TB, left_TB = torch.rand(4, TRIES, count, generator=rng, dtype=torch.float64)
        area_TB = height * width * (self.least_area + (1 - self.least_area) * area_TB)
        low, high = map(math.log, RATIOS if self.kind == "random" else (1, 1))
        ratio_TB = torch.exp(low + (high - low) * ratio_TB)
        wide_TB, high_TB = (area_TB * ratio_TB).sqrt().round(), (area_TB / ratio_TB).sqrt().round()
        fits_TB = (wide_TB <= width) & (high_TB <= height) & (wide_TB > 0) & (high_TB > 0)
        top_TB = (top_TB * (height - high_TB + 1)).floor()
        left_TB = (left_TB * (width - wide_TB + 1)).floor()
        first_B = fits_TB.int().argmax(dim=0)
        drawn_4B = torch.stack([top_TB, left_TB, high_TB, wide_TB])[:, first_B, torch.arange(count)]
        middle_4 = torch.tensor(self._middle(height, width), dtype=torch.float64)
        return torch.where(fits_TB.any(dim=0), drawn_4B, middle_4[:, None]).T.long()

    def _middle(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The largest part in the middle whose ratio is allowed."""
        low, high = RATIOS if self.kind == "random" else (1, 1)
        wide, tall = min(width, round(height * high)), min(height, round(width / low))
        return (height - tall) // 2, (width - wide) // 2, tall, wide

    def cut(self, pixels: Tensor, box_B4: Tensor, size: Sequence[int]) -> Tensor:
        """Parts of images, resized: bilinear, or of growing parts bicubic. (B, channels, *size) float32.

        Args:
            pixels: (B, channels, H, W), no larger than the result, as downscaling would need a wider kernel.
            box_B4: of `boxes`.
            size: (height, width) of the result.
        """
        height, width = pixels.shape[2:]
        top_B, left_B, high_B, wide_B = box_B4.to(pixels.device).float().unbind(dim=1)
        theta_B23 = pixels.new_zeros(len(pixels), 2, 3, dtype=torch.float32)
        theta_B23[:, 0, 0], theta_B23[:, 0, 2] = wide_B / width, (2 * left_B + wide_B) / width - 1
        theta_B23[:, 1, 1], theta_B23[:, 1, 2] = high_B / height, (2 * top_B + high_B) / height - 1
        with torch.autocast(pixels.device.type, enabled=False):
            grid = F.affine_grid(theta_B23, [*pixels.shape[:2], *size], align_corners=False)
            mode = "bilinear" if self.kind == "random" else "bicubic"
            cut = F.grid_sample(pixels.float(), grid, mode, padding_mode="border", align_corners=False)
        return cut.clamp_(0, 255)
