"""Logits -> metrics: all, many, medium, few, per class, confusion; shot groups as in Franklin et al. 2024, Table 1.

Letters in the names give shapes: N images, C classes.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lfm.config.schema import GROUPS, ShotsConfig


def shot_group(count_C: Tensor, shots: ShotsConfig) -> list[str]:
    """many: n > shots.many; few: n < shots.few; medium between. One name for each class."""
    code_C = (count_C <= shots.many).long() + (count_C < shots.few).long()
    return [GROUPS[code] for code in code_C.tolist()]


def confusion(predicted_N: Tensor, label_N: Tensor, classes: int) -> Tensor:
    """How often class r was taken for class c. (C, C) int64, rows are the truth."""
    return (label_N * classes + predicted_N).bincount(minlength=classes * classes).view(classes, classes)


def hits(predicted_N: Tensor, label_N: Tensor, classes: int) -> Tensor:
    """Images of each class that were predicted right, and all. (2, C) int64."""
    right_N = label_N[predicted_N == label_N]
    return torch.stack([right_N.bincount(minlength=classes), label_N.bincount(minlength=classes)])


def accuracy(hits_2C: Tensor, count_C: Tensor, shots: ShotsConfig) -> dict[str, Any]:
    """Top-1 accuracy in percent of all images and of each shot group.

    Args:
        hits_2C: of `hits`.
        count_C: training images of each class, which set its group.
        shots: the thresholds.

    Returns:
        `all`, `many`, `medium`, `few` (None where no class is in the group: absent, never 0), `images` and
        `per_class` (percent, None for a class without images).
    """
    right, total = hits_2C.tolist()
    groups = shot_group(count_C, shots)

    def share(chosen: Sequence[int]) -> float | None:
        images = sum(total[k] for k in chosen)
        return 100 * sum(right[k] for k in chosen) / images if images else None

    everything = range(len(total))
    return {
        "all": share(everything),
        **{group: share([k for k in everything if groups[k] == group]) for group in GROUPS},
        "images": sum(total),
        "per_class": [share([k]) for k in everything],
    }


def metrics(confusion_CC: Tensor, count_C: Tensor, shots: ShotsConfig) -> dict[str, Any]:
    """`accuracy` from a confusion matrix, whose rows are the truth, and the matrix itself as `confusion`."""
    hits_2C = torch.stack([confusion_CC.diagonal(), confusion_CC.sum(dim=1)])
    return accuracy(hits_2C, count_C, shots) | {"confusion": confusion_CC.tolist()}


def top_class(logits_NC: Tensor) -> Tensor:
    """Class of the largest logit, the first of equals. (N,) int64, on the device."""
    if logits_NC.device.type == "cpu" and logits_NC.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(logits_NC.detach().numpy().argmax(axis=1))  # four times as fast as PyTorch's on a CPU
    return logits_NC.argmax(dim=1)


@torch.inference_mode()
def predict(logits: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Tensor:
    """Class of the largest logit for every image of the batches, in order. (N,) int64, on the device."""
    return torch.cat([top_class(logits(x)) for x in batches])
