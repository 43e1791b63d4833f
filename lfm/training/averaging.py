"""An exponential moving average of the weights that a stage trains: what it ends with, where `ema` is set."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


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
        self._update = get_ema_multi_avg_fn(decay)
        for own, kept in zip(self.mean, mean, strict=bool(mean)):
            own.copy_(kept)

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after a step into the mean."""
        if self.trained:
            self._update(self.mean, self.trained, 0)

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
