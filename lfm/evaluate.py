"""Logits -> metrics: all, many, medium, few, per class, confusion (paper.md section 7).

Letters in the names give shapes: N images, C classes.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lfm.config import ShotsConfig

GROUPS = ("many", "medium", "few")


def shot_group(count_C: Tensor, shots: ShotsConfig) -> list[str]:
    """many: n > shots.many; few: n < shots.few; medium between. One name for each class."""
    code_C = (count_C <= shots.many).long() + (count_C < shots.few).long()
    return [GROUPS[int(code)] for code in code_C]


def confusion(predicted_N: Tensor, label_N: Tensor, classes: int) -> Tensor:
    """How often class r was taken for class c. (C, C) int64, rows are the truth."""
    return (label_N * classes + predicted_N).bincount(minlength=classes * classes).view(classes, classes)


def metrics(confusion_CC: Tensor, count_C: Tensor, shots: ShotsConfig) -> dict[str, Any]:
    """Top-1 accuracy in percent of all images and of each shot group.

    Args:
        confusion_CC: rows are the truth.
        count_C: training images of each class, which set its group.
        shots: the thresholds.

    Returns:
        `all`, `many`, `medium`, `few` (None where no class is in the group: absent, never 0), `images`,
        `per_class` (percent, None for a class without images) and `confusion`.
    """
    right_C, total_C = confusion_CC.diagonal().double(), confusion_CC.sum(dim=1).double()
    groups = shot_group(count_C, shots)

    def share(chosen: list[int]) -> float | None:
        total = total_C[chosen].sum().item()
        return 100 * right_C[chosen].sum().item() / total if total else None

    everything = list(range(len(total_C)))
    return {
        "all": share(everything),
        **{group: share([k for k in everything if groups[k] == group]) for group in GROUPS},
        "images": int(total_C.sum()),
        "per_class": [share([k]) for k in everything],
        "confusion": confusion_CC.tolist(),
    }


@torch.inference_mode()
def predict(logits: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Tensor:
    """Class of the largest logit for every image of the batches, in order. (N,) int64, on the device."""
    return torch.cat([logits(x).argmax(dim=1) for x in batches])
