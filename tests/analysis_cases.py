"""Pairs with given counts.

Letters in the names give shapes: C classes, D embedding dimensions, A values of alpha.
"""

import math

import pytest
import torch
from torch import Tensor

from lfm.method.analysis import (
    Pairs,
)

COUNTS = [40, 7, 23, 7, 1, 90]  # not sorted, with a tie and a single image


def unit_rows(classes: int, dim: int = 5, seed: int = 0) -> Tensor:
    rows_CD = torch.randn(classes, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows_CD, dim=1)


def pairs_of(tau: float, uniform: bool = False, counts: list[int] = COUNTS, seed: int = 0) -> Pairs:
    return Pairs(torch.tensor(counts), unit_rows(len(counts), seed=seed), tau, uniform)


# --- the oracles: plain loops over Python numbers ---


def partner_loop(pairs: Pairs) -> list[list[float]]:
    """p_ls(j | i), row i."""
    text = pairs.text_CD.double().tolist()
    classes = range(len(text))
    rows = []
    for i in classes:
        score = [math.fsum(a * b for a, b in zip(text[i], text[j], strict=True)) / pairs.tau for j in classes]
        top = max(score[j] for j in classes if j != i)
        weight = [0.0 if j == i else 1.0 if pairs.uniform else math.exp(score[j] - top) for j in classes]
        rows.append([w / math.fsum(weight) for w in weight])
    return rows


def own_loop(pairs: Pairs, alpha: float) -> list[float]:
    """own(c) as demo.md writes it."""
    n, rows = pairs.count_C.tolist(), partner_loop(pairs)
    classes = range(len(n))

    def w(i: int, j: int) -> float:
        return n[i] / sum(n) * rows[i][j]

    def s(i: int, j: int) -> float:
        return alpha * (n[i] - n[j]) / (n[i] + n[j])

    def clamp(x: float) -> float:
        return min(max(x, 0.0), 1.0)

    own = []
    for c in classes:
        first = sum(w(c, j) * clamp(1 - s(c, j)) for j in classes)
        partner = sum(w(i, c) * (1 - clamp(-s(i, c))) for i in classes)
        own.append((first + partner) / (sum(w(c, j) for j in classes) + sum(w(i, c) for i in classes)))
    return own


both_partners = pytest.mark.parametrize("uniform", [False, True], ids=["text", "uniform"])
