"""The analysis against loops, a grid, numerical integration, the sampler itself, and the demo's measured numbers.

Letters in the names give shapes: C classes, D embedding dimensions, A values of alpha.
"""

import math
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special
from torch import Tensor

from lfm.config.presets import load
from lfm.config.schema import MixupConfig
from lfm.jobs.preview import advice
from lfm.method import analysis
from lfm.method.analysis import (
    Pairs,
    auto_alpha,
    effective_partners,
    expected_label_weight,
    imbalance,
    label_mass,
    neighbours,
    own_label_mass,
    seen_probability,
    tau_for,
)
from lfm.method.mixup import PairSampler


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small only lose time on more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


DEMO_COUNTS = [1000, 599, 359, 215, 129, 77, 46, 27, 16, 10]
COUNTS = [40, 7, 23, 7, 1, 90]  # not sorted, with a tie and a single image


def unit_rows(classes: int, dim: int = 5, seed: int = 0) -> Tensor:
    rows_CD = torch.randn(classes, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows_CD, dim=1)


def pairs_of(tau: float, uniform: bool = False, counts: list[int] = COUNTS, seed: int = 0) -> Pairs:
    return Pairs(torch.tensor(counts), unit_rows(len(counts), seed=seed), tau, uniform)


def demo_pairs(text_CD: Tensor, tau: float, uniform: bool = False) -> Pairs:
    return Pairs(torch.tensor(DEMO_COUNTS), text_CD, tau, uniform)


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


def seen_loop(pairs: Pairs) -> list[float]:
    counts, rows = pairs.count_C.tolist(), partner_loop(pairs)
    p = [n / sum(counts) for n in counts]
    return [p[y] + (1 - p[y]) * sum(rows[k][y] * p[k] for k in range(len(p)) if k != y) for y in range(len(p))]


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


both_partners = pytest.mark.parametrize("uniform", [False, True], ids=["text", "uniform"])
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


# --- the numbers of demo.md, real class names ---


@pytest.mark.parametrize(("tau", "expected"), [(0.01, 31.9), (0.05, 13.3), (0.25, 4.7), (1.25, 4.0)])
def test_effective_imbalance_of_the_demo(tau: float, expected: float, text_CD: Tensor) -> None:
    pairs = demo_pairs(text_CD, tau)
    assert imbalance(pairs.count_C) == 100
    assert round(imbalance(seen_probability(pairs)), 1) == expected


@pytest.mark.parametrize(
    ("tau", "alpha", "expected"),
    [
        (0.05, 1.0, [0.17, 0.26, 0.59, 0.66, 0.85, 0.77, 1, 0.96, 1, 1]),
        (0.25, 0.5, [0.64, 0.72, 0.81, 0.88, 0.94, 0.95, 0.99, 0.99, 1, 1]),
    ],
)
def test_own_label_mass_of_the_demo(tau: float, alpha: float, expected: list[float], text_CD: Tensor) -> None:
    assert [round(v, 2) for v in own_label_mass(demo_pairs(text_CD, tau), alpha).tolist()] == expected


@pytest.mark.parametrize(("tau", "alpha", "expected"), [(0.05, 1.0, 24.3), (0.25, 0.5, 2.6)])
def test_label_mass_of_the_demo(tau: float, alpha: float, expected: float, text_CD: Tensor) -> None:
    assert round(imbalance(label_mass(demo_pairs(text_CD, tau), alpha)), 1) == expected


def test_alpha_up_to_one_half_keeps_every_class_of_the_demo_above_one_half(text_CD: Tensor) -> None:
    for tau in (0.01, 0.05, 0.25, 1.25):
        for alpha in (0.1, 0.3, 0.5):
            assert own_label_mass(demo_pairs(text_CD, tau), alpha).min() > 0.5


def test_the_demos_nearest_names(text_CD: Tensor) -> None:
    index_Ck, cosine_Ck = neighbours(text_CD, 1)
    assert index_Ck[0].tolist() == [6] and index_Ck[6].tolist() == [0], "T-shirt/top and Shirt"
    assert round(float(cosine_Ck[0, 0]), 2) == 0.81
    assert index_Ck[7].tolist() == [9] and round(float(cosine_Ck[7, 0]), 2) == 0.61, "Sneaker and Ankle boot"


# --- blocks ---


@both_partners
@pytest.mark.parametrize("entries", [1, 7, 13, 6 * 6])
def test_results_do_not_depend_on_the_block_size(entries: int, uniform: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = pairs_of(0.1, uniform)

    def everything() -> list[Tensor]:
        near = neighbours(pairs.text_CD, 4)
        return [seen_probability(pairs), own_label_mass(pairs, 0.8), label_mass(pairs, 0.8, 0.2), *near]

    whole = everything()
    monkeypatch.setattr(analysis, "BLOCK_ENTRIES", entries)
    sizes = [len(class_R) for class_R, _ in pairs.blocks()]
    assert sum(sizes) == len(COUNTS) and max(sizes) == max(1, entries // len(COUNTS))
    for found, expected in zip(everything(), whole, strict=True):
        assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9)


# --- neighbours ---


@settings(max_examples=30, deadline=None, derandomize=True)
@given(classes=st.integers(2, 9), k=st.integers(1, 10), seed=st.integers(0, 10_000))
def test_neighbours_equal_a_full_sort(classes: int, k: int, seed: int) -> None:
    text_CD = unit_rows(classes, seed=seed)
    index_Ck, cosine_Ck = neighbours(text_CD, k)
    similar = text_CD.double().numpy() @ text_CD.double().numpy().T
    for i in range(classes):
        order = [int(j) for j in np.argsort(-similar[i], kind="stable") if j != i][:k]
        assert index_Ck[i].tolist() == order
        assert cosine_Ck[i].tolist() == pytest.approx(similar[i][order].tolist(), abs=1e-6)


# --- auto alpha ---


def own_grid(pairs: Pairs, alpha_A: np.ndarray) -> np.ndarray:
    """own(c) of every alpha at once, (A, C), from a loop over pairs of classes."""
    n, rows = pairs.count_C.tolist(), partner_loop(pairs)
    kept, seen = np.zeros((len(alpha_A), len(n))), np.zeros(len(n))
    for i in range(len(n)):
        for j in range(len(n)):
            weight, shift_A = n[i] / sum(n) * rows[i][j], alpha_A * (n[i] - n[j]) / (n[i] + n[j])
            kept[:, i] += weight * np.clip(1 - shift_A, 0, 1)
            kept[:, j] += weight * (1 - np.clip(-shift_A, 0, 1))
            seen[[i, j]] += weight if i != j else 0
    return kept / seen


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.integers(1, 1000), min_size=2, max_size=6),
    seed=st.integers(0, 10_000),
    tau=st.sampled_from([0.02, 0.05, 0.25, 1.0]),
    threshold=st.sampled_from([0.3, 0.5, 0.7, 0.9, 1.0]),
    uniform=st.booleans(),
)
def test_auto_alpha_is_the_largest_of_a_grid_that_keeps_every_class(
    counts: list[int], seed: int, tau: float, threshold: float, uniform: bool
) -> None:
    pairs = pairs_of(tau, uniform, counts, seed)
    alpha_A = np.arange(0, 2001) / 1000
    keeps_A = own_grid(pairs, alpha_A).min(axis=1) >= threshold - 1e-7  # text similarities are float32
    largest = alpha_A[keeps_A].max()
    found = auto_alpha(pairs, threshold)
    assert largest - 2e-4 <= found < largest + 1e-3
    assert min(own_loop(pairs, found)) >= threshold - 1e-6


def test_auto_alpha_of_the_demo_is_between_one_half_and_one(text_CD: Tensor) -> None:
    found = auto_alpha(demo_pairs(text_CD, 0.05), 0.5)
    assert 0.5 < found < 1
    assert own_label_mass(demo_pairs(text_CD, 0.05), found + 2e-4).min() < 0.5
    assert auto_alpha(demo_pairs(text_CD, 0.05), 0.01) == 2.0
    assert auto_alpha(demo_pairs(text_CD, 0.05), 0.01, most=0.7) == 0.7


# --- effective partners ---


@pytest.mark.parametrize("tau", [0.02, 0.25, 5.0])
def test_effective_partners_are_the_perplexity_of_the_partner(tau: float) -> None:
    pairs = pairs_of(tau, False, [500, 60, 9, 3, 1], 4)
    rows = partner_loop(pairs)
    entropy = sum(
        n / 573 * -sum(p * math.log(p) for p in row if p > 0) for n, row in zip([500, 60, 9, 3, 1], rows, strict=True)
    )
    assert effective_partners(pairs) == pytest.approx(math.exp(entropy), rel=1e-6)
    assert effective_partners(pairs_of(tau, True, [500, 60, 9, 3, 1], 4)) == pytest.approx(4)


def test_a_temperature_is_found_for_a_number_of_partners(text_CD: Tensor) -> None:
    for wanted in (1.5, 4.5, 8.9):
        tau = tau_for(demo_pairs(text_CD, 1.0), wanted)
        assert effective_partners(demo_pairs(text_CD, tau)) == pytest.approx(wanted, rel=1e-4)


def test_what_to_tune_and_a_tau_are_advised_from_the_data(text_CD: Tensor) -> None:
    sharp, mild = (load("fashion-mnist-lt", {"mixup.tau": tau}) for tau in (0.02, 0.25))
    counts = torch.tensor([1000, 599, 359, 215, 129, 77, 46, 27, 16, 10])
    warned = advice(sharp, Pairs(counts, text_CD, 0.02))
    assert len(warned) == 3 and "more unequal than uniform" in warned[1] and "gives 4.5 partners" in warned[1]
    assert "5 of 10 classes have more than 100 images (eta 1)" in warned[2] and "stage1.tune=full" in warned[2]
    calm = advice(mild, Pairs(counts.clamp(max=90), text_CD, 0.25))
    assert "0 of 10 classes" in calm[-1] and "stage1.tune=adaptformer" in calm[-1]
