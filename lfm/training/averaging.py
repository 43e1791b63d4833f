"""An exponential moving average of the weights that a stage trains: what it ends with, where `ema` is set."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

START_LEFT = 0.01
"""Largest part of a mean that the weights of the start may be without a warning."""


class Average:
    """mean <- decay mean + (1 - decay) weights after each step; the first mean is the weights of the start.

    Running statistics of batch norms are an average of their own, and are left as they are.

    Args:
        trained: what is averaged.
        decay: 0 for none: then every method does nothing.
        mean: of a checkpoint, to go on from.
    """

    def __init__(self, trained: Sequence[nn.Parameter], decay: float, mean: Sequence[Tensor] = ()) -> None:
        self.trained = list(trained) if decay else []
        self.mean = [parameter.detach().clone() for parameter in self.trained]
        self._decay, self._update = decay, get_ema_multi_avg_fn(decay)
        for own, kept in zip(self.mean, mean, strict=bool(mean)):
            own.copy_(kept)

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after a step into the mean."""
        if self.trained:
            self._update(self.mean, self.trained, 0)

    def too_slow(self, steps: int) -> str:
        """What is wrong with a mean that the weights of the start stay in; empty where they fade."""
        left = self._decay**steps
        if not self.trained or left <= START_LEFT:
            return ""
        return (
            f"{100 * left:.0f} % of the mean are the weights of the start after {steps:,} steps; a decay of "
            f"{START_LEFT ** (1 / max(1, steps)):.2g} leaves {100 * START_LEFT:.0f} %"
        )

    def _exchange(self) -> None:
        for parameter, mean in zip(self.trained, self.mean, strict=True):
            kept = parameter.detach().clone()
            parameter.data.copy_(mean)
            mean.copy_(kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the mean for weights, as for scores in the middle of a stage."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def finish(self) -> None:
        """Give the model the mean for good."""
        for parameter, mean in zip(self.trained, self.mean, strict=True):
            parameter.data.copy_(mean)
