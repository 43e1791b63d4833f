"""The temperature that makes probabilities honest (Guo et al. 2017, "On Calibration of Modern Neural Networks").

p = softmax(cosine / T). One number is chosen, on images that neither trained the model nor score it; as T > 0, the
order of the classes stays as it is. Answers for other class shares have a temperature of their own, and the shares that
the logits stand for. Letters give shapes: N images, C classes.
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


@dataclass(frozen=True)
class Shift(Calibration):
    """A temperature, and the class shares that the cosines over it stand for.

    Args:
        prior: of each class, adding up to 1.
    """

    prior: tuple[float, ...]


def fit_shift(cosine_NC: Tensor, label_N: Tensor, start: float, split: str, prior_C: Tensor) -> Shift:
    """Temperature T and class shares pi with which p(y | x) ~ exp(z_y / T) q_y / pi_y is the most likely.

    q are the shares of the images, which are known. What training leaves in the logits is only nearly pi: a model that
    takes too many images for shirts does so whatever it is asked, and an estimate of q would add to that. So log pi is
    fitted too (bias-corrected temperature scaling, Alexandari, Kundaje and Shrikumar 2020), held at the shares of
    training by a normal prior of deviation 1 on each class's difference, which few images do not overcome. Convex.

    Args:
        cosine_NC: cosine logits of N images.
        label_N: classes of the images.
        start: temperature of training.
        split: split of the data set that the images are from.
        prior_C: class shares that training left in the logits, all above 0.
    """
    z_NC, share_C = cosine_NC.double(), label_N.bincount(minlength=len(prior_C)).double() / len(label_N)
    known_C = (share_C / prior_C.double()).log()  # minus infinity for a class without an image: it is not answered
    log_b, change_C = torch.zeros((), dtype=torch.float64), torch.zeros_like(known_C)
    optimizer = torch.optim.LBFGS(
        [log_b.requires_grad_(), change_C.requires_grad_()], max_iter=200, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        logit_NC = z_NC * (log_b.exp() / start) + known_C - change_C
        return torch.nn.functional.cross_entropy(logit_NC, label_N)

    def closure() -> float:
        optimizer.zero_grad()
        total = loss() + change_C.square().sum() / (2 * len(label_N))
        total.backward()
        return total.item()

    with torch.inference_mode(False), torch.enable_grad():
        before = loss().item()
        optimizer.step(closure)
        after = loss().item()
    fitted_C = (prior_C.double().log() + change_C.detach()).softmax(dim=0)
    temperature = start / math.exp(min(max(log_b.item(), -math.log(RANGE)), math.log(RANGE)))
    return Shift(temperature, len(label_N), split, before, after, tuple(fitted_C.tolist()))
