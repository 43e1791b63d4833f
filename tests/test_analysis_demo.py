"""The analysis against the demo's measured numbers; blocks, neighbours, and the largest alpha.

Letters in the names give shapes: C classes, D embedding dimensions, A values of alpha.
"""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lfm.config.presets import load
from lfm.jobs.preview import advice
from lfm.method import analysis
from lfm.method.analysis import (
    Pairs,
    auto_alpha,
    effective_partners,
    imbalance,
    label_mass,
    neighbours,
    own_label_mass,
    seen_probability,
    tau_for,
)
from tests.analysis_cases import COUNTS, both_partners, own_loop, pairs_of, partner_loop, unit_rows

pytestmark = pytest.mark.usefixtures("one_thread")
DEMO_COUNTS = [1000, 599, 359, 215, 129, 77, 46, 27, 16, 10]


def demo_pairs(text_CD: Tensor, tau: float, uniform: bool = False) -> Pairs:
    return Pairs(torch.tensor(DEMO_COUNTS), text_CD, tau, uniform)


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
    sharp = load("fashion-mnist-lt", {"mixup.tau": 0.02})
    counts = torch.tensor([1000, 599, 359, 215, 129, 77, 46, 27, 16, 10])
    pairs = Pairs(counts, text_CD, 0.02)
    first, second = advice(sharp, pairs)
    assert "of 9 partner classes in effect" in first and "more unequal than uniform partners would" in second
    found = re.search(r"mixup\.tau=(\S+) gives (\S+) partners here, and gamma' (\S+)", second)
    assert found, second
    uniform = imbalance(seen_probability(Pairs(counts, text_CD, 1, uniform=True)))
    milder = imbalance(seen_probability(Pairs(counts, text_CD, float(found[1]))))
    assert milder == pytest.approx(float(found[3]), rel=0.05) and uniform < milder < 1.5 * uniform
    calm = load("fashion-mnist-lt", {"mixup.tau": 5.0})
    assert len(advice(calm, Pairs(counts, text_CD, 5.0))) == 1
    plain = load("fashion-mnist-lt", {"mixup.name": "none"})
    assert advice(plain, pairs) == ["mixup.name=none draws no partners by text: p(Y), own and M are those of lfm"]
    tower = load("cifar10-lt", {"mixup.tau": 5.0})
    assert "5 of 10 classes have more than 100 images, 1 for each other one: the tower" in advice(tower, pairs)[-1]
    assert "stage1.tune=adaptformer" in advice(tower, Pairs(counts.clamp(max=90), text_CD, 5.0))[-1]
