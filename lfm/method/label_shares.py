"""How much label mass each class gets in training, and what logit adjustment makes of it (Menon et al. 2021).

A model trained on labels of which class c gets the share M_c answers for images in these shares: its logits hold
log M_c. Logit adjustment adds s log pi_c to them while it trains ("Long-tail learning via logit adjustment", ICLR 2021,
eq. 10), so that the model need not learn that part: without the addition they stand for M_c pi_c^-s.

C in the names is the number of classes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lfm.method.analysis import Pairs, label_mass

if TYPE_CHECKING:  # the method itself needs torch alone
    from lfm.config.schema import LossConfig, MixupConfig

LEAST_SHARE = 1e-9
"""The share that a class counts as having whose images all go to other labels: its logarithm must be finite."""


@dataclass(frozen=True)
class LabelShares:
    """The shares of one stage of training, exact and without sampling.

    Args:
        mixup: its name, and the fields of it that move label mass.
        pairs: counts, and whom lfm pairs.
        alpha: strength of the label shift of lfm.
        steps: batches of an epoch.
    """

    mixup: "MixupConfig"
    pairs: Pairs
    alpha: float
    steps: int

    @property
    def prior_C(self) -> Tensor:
        """n_c / N, float64."""
        return self.pairs.prior_C

    @cached_property
    def mass_C(self) -> Tensor:
        """M_c, the expected share of all label mass under the sampler of the run, float64, adding up to 1."""
        return MASSES[self.mixup.name](self)

    def adjusting(self, loss: "LossConfig") -> Tensor | None:
        """The shares that the loss removes in training; None where it removes none."""
        if loss.adjust == "label-mass":
            return self.mass_C
        return self.prior_C if loss.adjust == "prior" or loss.name == "balce" else None

    def remaining(self, loss: "LossConfig") -> Tensor:
        """The class shares that the trained model's logits stand for: M_c pi_c^-s, adding up to 1. (C,) float64."""
        log_C = self.mass_C.clamp_min(LEAST_SHARE).log()
        removed_C = self.adjusting(loss)
        if removed_C is not None:
            log_C = log_C - loss.adjust_strength * removed_C.clamp_min(LEAST_SHARE).log()
        return log_C.softmax(dim=0)


def _as_sampled(shares: LabelShares) -> Tensor:
    """Without mixup, and with Mixup, whose partners are the batch in another order: each image weighs one."""
    return shares.prior_C


def _lfm(shares: LabelShares) -> Tensor:
    return label_mass(shares.pairs, shares.alpha, shares.mixup.beta)


def _remix(shares: LabelShares) -> Tensor:
    """M_c = p_c + r (2 e - 1) (partners much rarer than c - partners much more frequent), as numbers of images.

    Each of the N images is its own partner with probability f = steps / N, since a random order of a batch of B leaves
    an image in place with probability 1 / B. All other images are its partner alike: r = (1 - f) n_c / (N (N - 1)).
    e = E[lambda_y] where the partner's class is rarer by `remix_kappa`, 1 - e in the mirror image, else 1 / 2.
    """
    count_C, config = shares.pairs.count_C, shares.mixup
    images, below = int(count_C.sum()), beta_below(config.remix_tau, config.beta)
    kept = (1 - beta_below(config.remix_tau, config.beta, more=1)) / 2 + below * (config.remix_branches == "swapped")
    rising_C = count_C.sort().values
    images_below = torch.nn.functional.pad(rising_C.cumsum(0), (1, 0))
    # The products are those of `remix_label`, rounded alike.
    rarer_C = images_below[torch.searchsorted(config.remix_kappa * rising_C, count_C.float(), right=True)]
    more_frequent_C = images - images_below[torch.searchsorted(rising_C.float(), config.remix_kappa * count_C)]
    rate_C = (1 - shares.steps / images) * count_C.double() / (images * max(images - 1, 1))
    return shares.prior_C + rate_C * (2 * kept - 1) * (rarer_C - more_frequent_C)


def beta_below(x: float, b: float, more: int = 0) -> float:
    """I_x(b + more, b), the regularised incomplete beta function: P(lambda < x) for lambda ~ Beta(b, b).

    With `more` = 1, 2 E[lambda; lambda < x]. By the series of Abramowitz and Stegun 26.5.4, whose terms fall as x^n,
    hence reflected above one half.
    """
    return _incomplete_beta(x, b + more, b)


def _incomplete_beta(x: float, p: float, q: float) -> float:
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > 0.5:
        return 1 - _incomplete_beta(1 - x, q, p)
    log_beta = math.lgamma(p) + math.lgamma(q) - math.lgamma(p + q)
    term = math.exp(p * math.log(x) + q * math.log1p(-x) - log_beta) / p
    total, n = term, 0
    while term > 1e-17 * total:
        term *= x * (p + q + n) / (p + 1 + n)
        total, n = total + term, n + 1
    return total


MASSES: dict[str, Callable[[LabelShares], Tensor]] = {
    "none": _as_sampled,
    "mixup": _as_sampled,
    "remix": _remix,
    "lfm": _lfm,
}
