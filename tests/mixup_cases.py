"""Samplers with a given long tail, and the partner distribution as plain loops.

Letters in the names give shapes: B images of a batch, C classes, D dimensions, N training images, P pairs.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from hypothesis import settings
from scipy import stats
from torch import Tensor

from lfm.config.schema import MixupConfig
from lfm.method.mixup import (
    PairSampler,
    local_sampling_rows,
    partner_sampler,
)
from lfm.method.partners import ChunkPartners, PartnerSampler

few = settings(max_examples=30, deadline=None, derandomize=True)
COUNTS = [
    60,
    31,
    17,
    8,
    4,
]  # images of each class of the small training set; class order is not sorted by text


def make_text(
    classes: int, seed: int = 0, dim: int = 6, dtype: torch.dtype = torch.float32, spread: float = 1.0
) -> Tensor:
    """Random unit rows; the smaller the spread, the more they all point one way, as CLIP's do."""
    rng = torch.Generator().manual_seed(seed)
    text_CD = 0.7 + spread * torch.randn(classes, dim, generator=rng, dtype=dtype)
    return text_CD / text_CD.norm(dim=1, keepdim=True)


def make_labels(counts: list[int], seed: int = 0) -> Tensor:
    label_N = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return label_N[torch.randperm(len(label_N), generator=torch.Generator().manual_seed(seed))]


def make_sampler(counts: list[int] = COUNTS, **values: Any) -> PairSampler:
    """A sampler of LFM at alpha 1 and tau 0.5, but for the values given, of the mixup or the sampler."""
    of_sampler = {"alpha": 1.0, "batch_size": 16, "seed": 0, "stage": 1}
    of_sampler |= {name: values.pop(name) for name in list(values) if name in of_sampler}
    config = MixupConfig(**{"tau": 0.5, **values})
    return PairSampler(config, make_labels(counts), make_text(len(counts)), **of_sampler)  # type: ignore[arg-type]


def oracle_row(text_CD: Tensor, i: int, tau: float) -> list[float]:
    """p_ls(. | i) by loops, every exponent relative to the largest."""
    rows = text_CD.double().tolist()
    scores = [math.fsum(a * b for a, b in zip(rows[i], row, strict=True)) / tau for row in rows]
    top = max(score for k, score in enumerate(scores) if k != i)
    mass = [0.0 if k == i else math.exp(score - top) for k, score in enumerate(scores)]
    return [m / math.fsum(mass) for m in mass]


def oracle_uniform_row(classes: int, i: int) -> list[float]:
    return [0.0 if k == i else 1 / (classes - 1) for k in range(classes)]


def chi_square(observed: list[list[int]], expected: list[list[float]]) -> float:
    """p-value of independent multinomial rows; cells expected under 5 are pooled within their row."""
    statistic, freedom = 0.0, 0
    for row_observed, row_expected in zip(observed, expected, strict=True):
        cells = [(o, e) for o, e in zip(row_observed, row_expected, strict=True) if e >= 5]
        rest_o = sum(row_observed) - sum(o for o, _ in cells)
        rest_e = sum(row_expected) - sum(e for _, e in cells)
        if rest_e > 1e-9:
            cells.append((rest_o, rest_e))
        else:
            assert rest_o == 0, "drawn without any probability"
        statistic += sum((o - e) ** 2 / e for o, e in cells)
        freedom += len(cells) - 1
    return float(stats.chi2.sf(statistic, freedom))


# --- Drawing partner classes -----------------------------------------------------------------------------


def in_chunks(text_CD: Tensor, tau: float) -> ChunkPartners:
    """As for many classes, however few there are."""
    return ChunkPartners(text_CD, tau, partial(local_sampling_rows, text_CD, tau=tau))


PATHS: dict[str, Callable[[Tensor, float], PartnerSampler]] = {
    "table": partner_sampler,
    "chunks": in_chunks,
    "uniform": partial(partner_sampler, uniform=True),
}


def path_row(path: str, text_CD: Tensor, i: int, tau: float) -> list[float]:
    return oracle_uniform_row(len(text_CD), i) if path == "uniform" else oracle_row(text_CD, i, tau)


def draws(sampler: PartnerSampler, class_B: Tensor, u_BK: Tensor) -> Tensor:
    """K partners of each class, (B, K)."""
    return sampler.draw(class_B.repeat_interleave(u_BK.shape[1]), u_BK.flatten()).view_as(u_BK)
