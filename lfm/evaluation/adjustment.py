"""Logit adjustment after training: z / T - s log pi (Menon et al. 2021, eq. 9), with s tuned on validation images.

A model answers as if test images came in the class shares pi that its logits stand for. Where each class counts alike,
taking log pi off again helps; how much of it, validation images say. It costs no training, so that no score of a plain
model is honest without it. Letters give shapes: N images, B images of a block, C classes, D dimensions, S strengths.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lfm.backbones.model import LFM
from lfm.config.schema import RunConfig
from lfm.evaluation.inference import EVAL_BATCH, autocast
from lfm.evaluation.metrics import hits, top_class

STRENGTHS = tuple(k / 10 for k in range(31))
"""What is tried; 0 leaves the model as it is, 1 is the paper's."""
EVEN = 1e-6
"""Shares that differ by less than this part of the largest are all the same."""
SAME = 1e-12
"""Rounding of a mean of accuracies; those that differ by no more tie."""


@dataclass(frozen=True)
class Adjustment:
    """What is taken off a model's cosines.

    Args:
        strength: s, one of `STRENGTHS`.
        offset_C: T s log pi.
        images: number of validation images it was tuned on.
        before: mean accuracy of the classes on them without adjustment, in percent.
        after: the same with it.
    """

    strength: float
    offset_C: Tensor
    images: int
    before: float
    after: float


def direction(prior_C: Tensor, count_C: Tensor) -> Tensor:
    """The log pi of what the logits stand for, or of the training images where that is even. (C,) float64."""
    even = float(prior_C.max() - prior_C.min()) <= EVEN * float(prior_C.max())
    return (count_C.double() / count_C.sum() if even else prior_C.double()).log()


@torch.inference_mode()
def tune(
    model: LFM, feature_ND: Tensor, label_N: Tensor, log_prior_C: Tensor, temperature: float, config: RunConfig
) -> Adjustment:
    """The strength with the highest mean accuracy of the classes on some images; of equals the smallest.

    Args:
        model: as trained.
        feature_ND: of `lfm.evaluation.inference.image_features`; in blocks, so that memory stays flat.
        label_N: classes of the images, on the same device.
        log_prior_C: of `direction`.
        temperature: T, which training divided the cosines by.
        config: precision.
    """
    step_C = (temperature * log_prior_C).to(feature_ND.device, torch.float32)
    found_S = [torch.zeros(2, len(step_C), dtype=torch.long, device=feature_ND.device) for _ in STRENGTHS]
    for block_BD, label_B in zip(feature_ND.split(EVAL_BATCH), label_N.split(EVAL_BATCH), strict=True):
        with autocast(config, feature_ND.device):
            cosine_BC = model.head(block_BD)
        for found_2C, strength in zip(found_S, STRENGTHS, strict=True):
            found_2C += hits(top_class(cosine_BC - strength * step_C), label_B, len(step_C))
    means = [_mean_accuracy(found_2C) for found_2C in found_S]
    best = next(k for k, mean in enumerate(means) if mean >= max(means) - SAME)
    return Adjustment(STRENGTHS[best], STRENGTHS[best] * step_C, len(label_N), 100 * means[0], 100 * means[best])


def _mean_accuracy(hits_2C: Tensor) -> float:
    """Over the classes that have images."""
    right_C, total_C = hits_2C.double()
    return float((right_C[total_C > 0] / total_C[total_C > 0]).mean())


@torch.inference_mode()
def predict_adjusted(model: LFM, feature_ND: Tensor, adjustment: Adjustment, config: RunConfig) -> Tensor:
    """Class of the largest adjusted logit, from what the tower gave. (N,) int64."""
    with autocast(config, feature_ND.device):
        return torch.cat([top_class(model.head(b) - adjustment.offset_C) for b in feature_ND.split(EVAL_BATCH)])
