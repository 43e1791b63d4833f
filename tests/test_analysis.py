"""The analysis against loops, numerical integration and the sampler that training uses.

Letters in the names give shapes: C classes, D embedding dimensions, A values of alpha.
"""

import math
from functools import cache

import pytest
import torch
from scipy import integrate, special
from torch import Tensor

from lfm.config.schema import MixupConfig
from lfm.method.analysis import (
    Pairs,
    expected_label_weight,
    label_mass,
    own_label_mass,
    seen_probability,
)
from lfm.method.mixup import PairSampler
from tests.analysis_cases import both_partners, own_loop, pairs_of, partner_loop, unit_rows

pytestmark = pytest.mark.usefixtures("one_thread")


def seen_loop(pairs: Pairs) -> list[float]:
    counts, rows = pairs.count_C.tolist(), partner_loop(pairs)
    p = [n / sum(counts) for n in counts]
    return [p[y] + (1 - p[y]) * sum(rows[k][y] * p[k] for k in range(len(p)) if k != y) for y in range(len(p))]


def expected_weight(shift: float, beta: float) -> float:
    """E[clamp(x - shift, 0, 1)], x ~ Beta(beta, beta), as the integral of P(clamp > u) over u in [0, 1]."""

    def survival(x: float) -> float:
        return 1 - float(special.betainc(beta, beta, min(max(x, 0.0), 1.0)))

    kinks = [k for k in (-shift, 1 - shift) if 0 < k < 1]
    return float(integrate.quad(lambda u: survival(u + shift), 0, 1, limit=300, points=kinks or None)[0])


def mass_loop(pairs: Pairs, alpha: float, beta: float) -> list[float]:
    """M_c = sum_j w_cj E[lambda_y] + sum_i w_ic E[1 - lambda_y]."""
    n, rows = pairs.count_C.tolist(), partner_loop(pairs)
    mass = [0.0] * len(n)
    for i in range(len(n)):
        for j in range(len(n)):
            if i != j:
                weight = n[i] / sum(n) * rows[i][j]
                first = expected_weight(alpha * (n[i] - n[j]) / (n[i] + n[j]), beta)
                mass[i] += weight * first
                mass[j] += weight * (1 - first)
    return mass


taus = pytest.mark.parametrize("tau", [0.01, 0.05, 1.0, 31.25])
alphas = pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.7])


@both_partners
@taus
def test_seen_probability_equals_the_loops(tau: float, uniform: bool) -> None:
    pairs = pairs_of(tau, uniform)
    assert seen_probability(pairs).tolist() == pytest.approx(seen_loop(pairs), rel=1e-5, abs=1e-12)


@both_partners
@taus
@alphas
def test_own_label_mass_equals_the_loops(alpha: float, tau: float, uniform: bool) -> None:
    pairs = pairs_of(tau, uniform)
    found_C = own_label_mass(pairs, alpha)
    assert found_C.tolist() == pytest.approx(own_loop(pairs, alpha), rel=1e-5)
    assert found_C.min() >= 0 and found_C.max() <= 1 + 1e-12


@both_partners
@pytest.mark.parametrize("beta", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.7])
def test_label_mass_equals_the_loops_with_numerical_integration(alpha: float, beta: float, uniform: bool) -> None:
    pairs = pairs_of(0.3, uniform)
    found_C = label_mass(pairs, alpha, beta)
    assert found_C.tolist() == pytest.approx(mass_loop(pairs, alpha, beta), rel=2e-5, abs=2e-6)
    assert float(found_C.sum()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("beta", "tolerance"), [(0.5, 1e-9), (0.2, 1e-5), (1.0, 1e-5), (3.0, 1e-5)])
def test_the_expected_label_weight_equals_numerical_integration(beta: float, tolerance: float) -> None:
    shifts = [-1.4, -1.0, -0.83, -0.2, -0.01, 0.0, 0.01, 0.2, 0.5, 0.83, 1.0, 1.4]
    found = expected_label_weight(torch.tensor(shifts, dtype=torch.float64), beta)
    for shift, value in zip(shifts, found.tolist(), strict=True):
        assert value == pytest.approx(expected_weight(shift, beta), abs=tolerance), shift


def test_closed_form_and_quadrature_agree_around_one_half() -> None:
    shift = torch.linspace(-1.2, 1.2, 97, dtype=torch.float64)
    below, closed, above = (expected_label_weight(shift, beta) for beta in (0.5 - 1e-7, 0.5, 0.5 + 1e-7))
    assert torch.allclose(below, closed, atol=1e-5) and torch.allclose(above, closed, atol=1e-5)


# --- against the sampler that training uses ---


@cache
def drawn(uniform: bool, beta: float, alpha: float, epochs: int = 150) -> tuple[Pairs, Tensor, Tensor, Tensor]:
    """An epoch a row: share of first images, of partners and of label mass of each class."""
    counts = [300, 40, 120, 20]
    text_CD = unit_rows(4, seed=2)
    label_N = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    config = MixupConfig(tau=0.4, beta=beta, partner="uniform" if uniform else "text")
    sampler = PairSampler(config, label_N, text_CD, alpha=alpha, batch_size=len(label_N), seed=0, stage=1)
    first, partner, mass = (torch.zeros(epochs, 4, dtype=torch.float64) for _ in range(3))
    for epoch in range(epochs):
        (batch,) = sampler.epoch(epoch)
        label_i_B, label_j_B = batch.label_B2.T
        first[epoch] = label_i_B.bincount(minlength=4)
        partner[epoch] = label_j_B.bincount(minlength=4)
        for label_B, weight_B in zip(batch.label_B2.T, batch.weight_B2.T, strict=True):
            mass[epoch] += torch.zeros(4, dtype=torch.float64).index_add(0, label_B, weight_B.double())
    n = len(label_N)
    return Pairs(torch.tensor(counts), text_CD, 0.4, uniform), first / n, partner / n, mass / n


def assert_mean(found: Tensor, expected_C: Tensor) -> None:
    """The rows' mean is within five standard errors."""
    error_C = found.std(0) / math.sqrt(len(found)) + 1e-9
    assert float(((found.mean(0) - expected_C) / error_C).abs().max()) < 5
    assert float((error_C / expected_C).max()) < 0.02, "too few draws to tell anything"


@both_partners
def test_seen_probability_is_that_of_the_pairs_drawn_in_training(uniform: bool) -> None:
    pairs, first, partner, _ = drawn(uniform, 0.5, 0.5)
    first_C = first.mean(0)
    assert torch.allclose(first_C, pairs.prior_C), "each image once an epoch"
    assert_mean(first_C + (1 - first_C) * partner, seen_probability(pairs))  # the paper's formula, linear in partner


@both_partners
@pytest.mark.parametrize("beta", [0.2, 0.5])
@pytest.mark.parametrize("alpha", [0.5, 1.5])
def test_label_mass_is_that_of_the_pairs_drawn_in_training(alpha: float, beta: float, uniform: bool) -> None:
    pairs, _, _, mass = drawn(uniform, beta, alpha)
    assert_mean(mass, label_mass(pairs, alpha, beta))
