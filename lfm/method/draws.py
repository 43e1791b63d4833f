"""Random draws that are functions of a key alone, made from uniform numbers so that releases do not change them."""

import hashlib

import torch
from torch import Tensor


def generator(*key: int | str) -> torch.Generator:
    """A CPU random generator that is a function of its key alone."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))


def beta(b: float, size: int, rng: torch.Generator) -> Tensor:
    """Exact draws from Beta(b, b), for any b > 0. (size,) float64.

    Two uniform draws each, u and v, in closed form: with q = (u^(-1/b) - 1) cos^2(pi v), sqrt(2 b q) is the size of a
    Student t with 2 b degrees of freedom (Bailey 1994, polar method), so that (1 +- sqrt(q / (1 + q))) / 2 is
    Beta(b, b). It is (1 - sqrt(q / (1 + q))) / 2 = (1 / (1 + q)) / (1 + sqrt(q / (1 + q))) / 2 that loses no digits
    near 0, where most of the draws lie for small b.
    """
    u_B, v_B = torch.rand(2, size, generator=rng, dtype=torch.float64)
    cosine_B = torch.cos(torch.pi * v_B)  # never exactly 0 in float64
    q_B = torch.expm1(-u_B.log() / b) * cosine_B.square()  # from 0 to infinity, both included
    less_B = 1 / (1 + q_B) / (1 + (1 / (1 + 1 / q_B)).sqrt()) / 2
    return torch.where(cosine_B < 0, less_B, 1 - less_B)
