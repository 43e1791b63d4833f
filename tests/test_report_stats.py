"""The report's statistics beside SciPy's, and the multinomial bootstrap beside one that draws every image."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from lfm.config.schema import GROUPS
from lfm.report.stats import (
    accuracy_intervals,
    boundary,
    calibration,
    hits,
    paired_differences,
    regression,
    spearman,
    twentieths,
    unpaired_differences,
)


def answers(seed: int, images: int = 900) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two models' hits on the same images, correlated, and the images' groups."""
    rng = np.random.default_rng(seed)
    group_N = rng.integers(0, 3, images)
    easy_N = rng.random(images)
    ours = rng.random(images) < 0.2 + 0.6 * easy_N + 0.05 * group_N
    base = rng.random(images) < 0.2 + 0.6 * easy_N
    return ours, base, group_N


@pytest.mark.parametrize("seed", [0, 1])
def test_intervals_are_those_of_a_bootstrap_that_draws_every_image(seed: int) -> None:
    right_N, _, group_N = answers(seed)
    total_G = np.bincount(group_N, minlength=3)
    found = accuracy_intervals(np.bincount(group_N[right_N], minlength=3).tolist(), total_G.tolist())
    rng = np.random.default_rng(99)
    drawn: dict[str, list[float]] = {name: [] for name in (*GROUPS, "all")}
    for _ in range(3000):
        n = rng.integers(0, len(right_N), len(right_N))
        drawn["all"].append(100 * right_N[n].mean())
        for g, name in enumerate(GROUPS):
            drawn[name].append(100 * right_N[n][group_N[n] == g].mean())
    for name, values in drawn.items():
        assert found[name] == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=0.45), name


def test_paired_differences_agree_with_scipys_paired_bootstrap() -> None:
    right_N, base_N, group_N = answers(3)
    found = paired_differences(right_N, base_N, group_N)
    for name, here in (("all", np.ones(len(group_N), bool)), ("few", group_N == 2)):
        a, b = right_N[here].astype(float), base_N[here].astype(float)
        oracle = scipy_stats.bootstrap(
            (a, b), lambda x, y, axis: 100 * (x.mean(axis=axis) - y.mean(axis=axis)), paired=True, vectorized=True,
            method="percentile", n_resamples=3000, rng=np.random.default_rng(0),
        )  # fmt: skip
        of = found[name]
        assert of is not None and of.paired and of.value == pytest.approx(100 * (a.mean() - b.mean()))
        # A group's images are a random number in ours, a fixed one in SciPy's: the same but for a little.
        assert (of.low, of.high) == pytest.approx(tuple(oracle.confidence_interval), abs=0.6)


def test_the_same_answers_differ_by_nothing_and_pairing_narrows_the_interval() -> None:
    right_N, base_N, group_N = answers(4, 4000)
    same = paired_differences(right_N, right_N, group_N)["all"]
    assert same is not None and (same.value, same.low, same.high) == (0, 0, 0)
    total = np.bincount(group_N, minlength=3).tolist()
    scores = [
        {name: 100 * float(of[group_N == g].mean()) for g, name in enumerate(GROUPS)} | {"all": 100 * float(of.mean())}
        for of in (right_N, base_N)
    ]
    loose, tight = (
        unpaired_differences(scores[0], scores[1], total, total)["all"],
        paired_differences(right_N, base_N, group_N)["all"],
    )
    assert loose is not None and tight is not None and not loose.paired
    assert loose.value == pytest.approx(tight.value)
    assert tight.high - tight.low < 0.95 * (loose.high - loose.low)
    assert loose.high - loose.low == pytest.approx(
        2 * 1.96 * 100 * np.hypot(right_N.std(), base_N.std()) / 4000**0.5, rel=0.05
    )


def test_unpaired_intervals_are_those_of_each_runs_own_counts() -> None:
    """240 images against 16: 75 % and 62.5 %, whose difference SciPy's bootstrap bounds by about 23 points."""
    base_N, ours_N = np.repeat([1.0, 0.0], [180, 60]), np.repeat([1.0, 0.0], [10, 6])
    oracle = scipy_stats.bootstrap(
        (ours_N, base_N), lambda x, y, axis: 100 * (x.mean(axis=axis) - y.mean(axis=axis)), vectorized=True,
        method="percentile", n_resamples=4000, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    ours, base = ({"many": v, "medium": None, "few": None, "all": v} for v in (62.5, 75.0))
    of = unpaired_differences(ours, base, [16, 0, 0], [240, 0, 0])["all"]
    assert of is not None and of.value == -12.5 and of.low < 0 < of.high
    assert (of.low, of.high) == pytest.approx((oracle.low, oracle.high), abs=3)
    back = unpaired_differences(base, ours, [240, 0, 0], [16, 0, 0])["all"]
    assert back is not None and (back.low, back.high) == pytest.approx((-of.high, -of.low), abs=3)


def test_an_absent_group_has_no_interval_and_hits_come_back_from_percent() -> None:
    assert accuracy_intervals([5, 0, 3], [10, 0, 6])["medium"] is None
    assert paired_differences(np.array([True]), np.array([False]), np.array([0]))["few"] is None
    assert hits({"many": 100 * 37 / 113, "medium": None, "few": 100.0}, [113, 0, 7]) == [37, 0, 7]
    absent = {"many": 50.0, "medium": None, "few": 10.0, "all": 40.0}
    assert unpaired_differences(absent, absent, [10, 0, 6], [10, 0, 6])["medium"] is None


@pytest.mark.parametrize("seed", range(4))
def test_the_rank_correlation_by_comparing_all_pairs_ties_and_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 5, 60).astype(float), rng.normal(size=60).round(1)
    rank_of_x, rank_of_y = (
        [sum(other < value for other in v) + (sum(other == value for other in v) + 1) / 2 for value in v]
        for v in (x, y)
    )
    assert spearman(x, y) == pytest.approx(np.corrcoef(rank_of_x, rank_of_y)[0, 1])
    assert spearman(x, np.zeros(60)) is None and spearman(x[:2], y[:2]) is None


def test_the_regression_is_the_polynomial_of_degree_one_in_the_logarithm() -> None:
    rng = np.random.default_rng(0)
    count, accuracy = rng.integers(1, 2000, 50).astype(float), rng.random(50) * 100
    line = regression(count.tolist(), accuracy.tolist())
    assert line is not None
    assert (line.slope, line.intercept) == pytest.approx(tuple(np.polyfit(np.log10(count), accuracy, 1)))
    assert line.correlation == pytest.approx(np.corrcoef(np.log10(count), accuracy)[0, 1])
    assert regression([5, 5], [1, 2]) is None
    flat = regression([5, 50, 500], [40, 40, 40])
    assert flat is not None and (flat.slope, flat.correlation) == (0, None)


def test_calibration_by_hand_and_by_a_loop() -> None:
    error, bins = calibration(np.array([0.95, 0.95, 0.55, 1.0]), np.array([True, False, True, True]))
    assert error == pytest.approx((abs(2.9 - 2) + abs(0.55 - 1)) / 4)
    assert [(b.images, b.accuracy) for b in bins] == [(1, 1.0), (3, pytest.approx(2 / 3))]
    rng = np.random.default_rng(1)
    sure = rng.random(500)
    right = rng.random(500) < sure**2
    expected = 0.0
    for k in range(15):
        here = [n for n in range(500) if k / 15 < sure[n] <= (k + 1) / 15]
        expected += abs(sum(right[n] for n in here) - sum(sure[n] for n in here)) / 500
    assert calibration(sure, right)[0] == pytest.approx(expected)


def test_the_boundary_lies_between_the_means() -> None:
    of = boundary([0.1, 0.3], [-0.6, 0.2])  # means 0.2 and -0.2: midway
    assert of is not None and of.position == pytest.approx(0.5) and (of.tail_right, of.head_right) == (1.0, 0.5)
    near_tail = boundary([0.1, -0.1], [-0.9, -1.1])
    assert near_tail is not None and near_tail.position == pytest.approx(1.0), "the tail's mean stands on the boundary"
    wrong = boundary([-1.0], [1.0])
    assert wrong is not None and wrong.position is None
    assert boundary([], [1.0]) is None


def test_equal_parts_by_rising_x() -> None:
    x = np.arange(400)[::-1].astype(float)
    parts = twentieths(x, 2 * x)
    assert len(parts) == 20 and parts[0] == [9.5, 19.0] and [p[1] for p in parts] == [2 * p[0] for p in parts]
    assert len(twentieths(x[:30], x[:30])) == 3
