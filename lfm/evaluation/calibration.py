"""The temperature that makes probabilities honest (Guo et al. 2017, "On Calibration of Modern Neural Networks").

p = softmax(cosine / T). One number is fitted, on images that neither trained the model nor score it; as T > 0, the
order of the classes stays as it is. Letters give shapes: N images, C classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 60
RANGE = 100.0
"""The temperature found is at most so many times above or below the one of training."""
MIN_IMAGES = 50
"""Fewer say nothing."""


@dataclass(frozen=True)
class Calibration:
    """A fitted temperature, and what it was fitted on.

    Args:
        temperature: that divides the cosines.
        images: how many.
        split: of the data set.
        before: mean negative log-likelihood at the temperature of training, nats an image.
        after: at the fitted one.
    """

    temperature: float
    images: int
    split: str
    before: float
    after: float


def negative_log_likelihood(cosine_NC: Tensor, label_N: Tensor, temperature: float) -> float:
    """Mean of -log p(label), in nats an image."""
    return float(torch.nn.functional.cross_entropy(cosine_NC.double() / temperature, label_N))


def fit(cosine_NC: Tensor, label_N: Tensor, start: float, split: str) -> Calibration:
    """The temperature of the least negative log-likelihood.

    It is convex in b = 1 / T, with derivative mean(sum_k p_k z_k - z_label) for cosines z: bisection finds its zero.

    Args:
        cosine_NC: cosine logits of N images.
        label_N: their classes.
        start: temperature of training; the one found lies within `RANGE` times of it.
        split: where the images are from.
    """
    z_NC = cosine_NC.double()
    own_N = z_NC.gather(1, label_N[:, None])[:, 0]

    def slope(b: float) -> float:
        return float(((b * z_NC).softmax(dim=1) * z_NC).sum(dim=1).sub(own_N).mean())

    low, high = 1 / (start * RANGE), RANGE / start
    for _ in range(STEPS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    found = 1 / (low * high) ** 0.5
    before, after = (negative_log_likelihood(cosine_NC, label_N, t) for t in (start, found))
    return Calibration(found, len(label_N), split, before, after)
