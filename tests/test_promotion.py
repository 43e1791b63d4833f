"""The gate beside an oracle that resamples images one by one, and beside exact probabilities."""

import re

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from lfm.evaluation.promotion import Gain, gate, paired_gain

Answers = NDArray[np.bool_]


def answers(n: int, both: int, won: int, lost: int) -> tuple[Answers, Answers]:
    """Of the new model and the champion: right together, and each alone, on n images."""
    new_N, old_N = np.zeros(n, bool), np.zeros(n, bool)
    new_N[:both] = old_N[:both] = True
    new_N[both : both + won] = True
    old_N[both + won : both + won + lost] = True
    return new_N, old_N


def resampled(new_N: Answers, old_N: Answers, seed: int, times: int = 4000) -> tuple[float, float]:
    """5 % and 95 % points of the difference in accuracy, images drawn with replacement, in pairs."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(times):
        index = rng.integers(0, len(new_N), len(new_N))
        found.append(100 * (new_N[index].mean() - old_N[index].mean()))
    found.sort()
    return found[int(0.05 * times)], found[int(0.95 * times)]


@pytest.mark.parametrize(
    ("n", "both", "won", "lost"), [(400, 200, 40, 20), (1000, 700, 10, 30), (60, 20, 5, 5), (300, 299, 1, 0)]
)
def test_the_bounds_are_those_of_resampled_images(n: int, both: int, won: int, lost: int) -> None:
    new_N, old_N = answers(n, both, won, lost)
    order = np.random.default_rng(1).permutation(n)
    found = paired_gain(new_N[order], old_N[order], np.random.default_rng(0))
    assert found.points == pytest.approx(100 * (won - lost) / n) and found.images == n
    low, high = resampled(new_N, old_N, seed=2)
    step = 100 / n  # the distribution has steps of one image
    assert found.low == pytest.approx(low, abs=2 * step) and found.high == pytest.approx(high, abs=2 * step)


def test_the_bounds_agree_with_the_normal_limit() -> None:
    n, won, lost = 20_000, 900, 700
    new_N, old_N = answers(n, 15_000, won, lost)
    found = paired_gain(new_N, old_N, np.random.default_rng(0))
    p, q = won / n, lost / n
    half = 100 * stats.norm.ppf(0.95) * np.sqrt((p + q - (p - q) ** 2) / n)
    assert found.low == pytest.approx(found.points - half, abs=0.02)
    assert found.high == pytest.approx(found.points + half, abs=0.02)


@pytest.mark.slow
def test_two_equally_good_models_are_seldom_promoted() -> None:
    """One-sided 95 %: about 5 of 100 fair coins pass."""
    rng = np.random.default_rng(3)
    few_N = np.zeros(500, bool)
    passed = 0
    for k in range(300):
        new_N, old_N = rng.random((2, 500)) < 0.7
        passed += gate(new_N, old_N, few_N, seed=k).promote
    assert stats.binom.ppf(0.001, 300, 0.05) <= passed <= stats.binom.ppf(0.999, 300, 0.05)


NONE = np.zeros(1000, bool)


@pytest.mark.parametrize(
    ("won", "lost", "few", "promote", "words"),
    [
        (60, 20, slice(0, 0), True, r"All \+4.00 points \(.*\) is better by more than the noise; there are no few shot"),  # noqa: E501
        (60, 20, slice(500, 560), True, r"better by more than the noise; Few \+100.00 points"),
        (60, 20, slice(560, 580), False, r"is better, but Few -100.00 points .* is worse by more than the noise"),
        (25, 20, slice(0, 0), False, r"All \+0.50 points \(-.*\) is not better by more than the noise of 1,000 test images"),  # noqa: E501
        (20, 60, slice(500, 520), False, r"All -4.00 points .* is not better"),
        (0, 0, slice(0, 100), False, r"All \+0.00 points \(\+0.00 to \+0.00\) is not better"),
        (200, 0, slice(0, 400), True, r"Few \+0.00 points \(\+0.00 to \+0.00\)"),
    ],
)  # fmt: skip
def test_it_decides_and_says_why(won: int, lost: int, few: slice, promote: bool, words: str) -> None:
    new_N, old_N = answers(1000, 500, won, lost)
    few_N = NONE.copy()
    few_N[few] = True
    found = gate(new_N, old_N, few_N)
    assert found.promote == promote
    assert re.search(words, found.why), found.why
    assert found == gate(new_N, old_N, few_N), "the same answer each time"


def test_a_little_worse_on_few_is_noise() -> None:
    new_N, old_N = answers(1000, 500, 80, 20)
    few_N = NONE.copy()
    few_N[575:585] = True  # five won, five lost
    few_N[585] = True
    found = gate(new_N, old_N, few_N)
    assert found.promote and found.few and found.few.points < 0 < found.few.high


def test_a_gain_reads_as_points_with_its_bounds() -> None:
    assert str(Gain(1.234, -0.5, 3.0, 10)) == "+1.23 points (-0.50 to +3.00)"
