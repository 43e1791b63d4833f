"""The temperature that makes probabilities honest (Guo et al. 2017, "On Calibration of Modern Neural Networks").

p = softmax(cosine / T). One number is chosen, on images that neither trained the model nor score it; as T > 0, the
order of the classes stays as it is. Letters give shapes: N images, C classes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RANGE = 100.0
"""The temperature found is at most so many times above or below the one of training."""


@dataclass(frozen=True)
class Calibration:
    """A calibrated temperature, and what it was chosen on.

    Args:
        temperature: divides the cosines.
        images: number of images that it was chosen on.
        split: split of the data set that the images are from.
        before: mean negative log-likelihood at the temperature of training, in nats per image.
        after: the same at the calibrated temperature.
    """

    temperature: float
    images: int
    split: str
    before: float
    after: float


def negative_log_likelihood(cosine_NC: Tensor, label_N: Tensor, temperature: float) -> float:
    """Mean of -log p(label), in nats per image."""
    return float(torch.nn.functional.cross_entropy(cosine_NC.double() / temperature, label_N))


def fit_temperature(cosine_NC: Tensor, label_N: Tensor, start: float, split: str) -> Calibration:
    """The temperature of the least negative log-likelihood.

    It is convex in b = 1 / T, with derivative mean(sum_k p_k z_k - z_label) for cosines z, whose zero is searched for
    over log b. A minimum is less sharp than a zero, and flat to the last digit where all answers are right.

    Args:
        cosine_NC: cosine logits of N images.
        label_N: classes of the images.
        start: temperature of training; the one found is within `RANGE` times of it.
        split: split of the data set that the images are from.
    """
    from scipy.optimize import brentq

    z_NC = cosine_NC.double()
    own_N = z_NC.gather(1, label_N[:, None])[:, 0]

    def slope(log_b: float) -> float:
        return float(((math.exp(log_b) * z_NC).softmax(dim=1) * z_NC).sum(dim=1).sub(own_N).mean())

    low, high = -math.log(start * RANGE), math.log(RANGE / start)
    if slope(low) >= 0:
        log_b = low
    elif slope(high) <= 0:
        log_b = high
    else:
        log_b = brentq(slope, low, high)
    temperature = math.exp(-log_b)
    before, after = (negative_log_likelihood(cosine_NC, label_N, t) for t in (start, temperature))
    return Calibration(temperature, len(label_N), split, before, after)
