"""Random draws that are functions of a key alone, made from uniform numbers so that they stay the same."""

import hashlib

import torch
from torch import Tensor


def generator(*key: int | str) -> torch.Generator:
    """A CPU random generator that is a function of its key alone."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))


def beta(b: float, shape: int, rng: torch.Generator) -> Tensor:
    """Draws from Beta(b, b), float64.

    The draw behind torch.distributions.Beta, called directly because only it takes a generator.
    """
    drawn: Tensor = torch._sample_dirichlet(torch.full((shape, 2), b, dtype=torch.float64), generator=rng)
    return drawn[:, 0]
