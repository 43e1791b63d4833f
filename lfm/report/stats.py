"""The statistics of the report: resampling test images, ranks, regression, calibration, boundaries.

Letters in the names give shapes: B resamples, N images, G groups, K cells of a table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lfm.config.schema import GROUPS
from lfm.report.tables import COLUMNS

Floats = NDArray[np.float64]

DRAWS = 4000
LEVEL = 95.0
BINS = 15
PARTS, LEAST = 20, 9
Interval = tuple[float, float]


def resampled(cell_K: NDArray[np.int64], draws: int = DRAWS, seed: int = 0) -> NDArray[np.int64]:
    """The bootstrap over images, where only the number of images in each cell of a table matters. (B, K).

    Drawing N images with replacement puts a multinomial number into each cell, so no image is ever drawn.
    """
    total = int(cell_K.sum())
    return np.random.default_rng(seed).multinomial(total, cell_K / max(total, 1), size=draws)


def interval(value_B: Floats) -> Interval | None:
    """The percentile interval of resampled values; nothing where there is none."""
    value_B = value_B[np.isfinite(value_B)]
    if not len(value_B):
        return None
    low, high = np.percentile(value_B, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)


def accuracy_draws(hit_G: Sequence[int], total_G: Sequence[int], seed: int = 0) -> dict[str, Floats]:
    """Resampled accuracy in percent of many, medium, few and all; NaN where a resample holds no image of a group."""
    hit, total = np.asarray(hit_G, np.int64), np.asarray(total_G, np.int64)
    cell_BG2 = resampled(np.stack([hit, total - hit], axis=1).ravel(), seed=seed).reshape(-1, len(hit), 2)
    right_BG, all_BG = cell_BG2[..., 0].astype(float), cell_BG2.sum(axis=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = {name: 100 * right_BG[:, g] / all_BG[:, g] for g, name in enumerate(GROUPS)}
        return share | {"all": 100 * right_BG.sum(axis=1) / all_BG.sum(axis=1)}


def accuracy_intervals(hit_G: Sequence[int], total_G: Sequence[int], seed: int = 0) -> dict[str, Interval | None]:
    """95 % intervals of the accuracies of many, medium, few and all, in percent, over test images.

    Args:
        hit_G: images answered rightly, in the order of `GROUPS`.
        total_G: images.
        seed: of the resamples.
    """
    return {name: interval(value_B) for name, value_B in accuracy_draws(hit_G, total_G, seed).items()}


@dataclass(frozen=True)
class Difference:
    """A difference of two accuracies in percent points, and its 95 % interval over test images."""

    value: float
    low: float
    high: float
    paired: bool


def paired_differences(
    right_N: NDArray[np.bool_], base_N: NDArray[np.bool_], group_N: NDArray[np.int64]
) -> dict[str, Difference | None]:
    """Accuracy less the baseline's on the same images, by the paired bootstrap.

    An image counts +1 (only we are right), -1 (only the baseline) or 0, so that three cells a group say it all.

    Args:
        right_N: whether we are right.
        base_N: whether the baseline is.
        group_N: each image's place in `GROUPS`.
    """
    outcome_N = right_N.astype(np.int64) - base_N.astype(np.int64) + 1
    cell_G3 = np.bincount(group_N * 3 + outcome_N, minlength=3 * len(GROUPS)).reshape(-1, 3)
    cell_BG3 = resampled(cell_G3.ravel()).reshape(-1, *cell_G3.shape)

    def gain(cell: NDArray[np.int64]) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(100 * (cell[..., 2] - cell[..., 0]) / cell.sum(axis=-1))

    values = dict(zip(COLUMNS, [*gain(cell_G3), gain(cell_G3.sum(axis=0))], strict=True))
    drawn = dict(zip(COLUMNS, [*gain(cell_BG3).T, gain(cell_BG3.sum(axis=1))], strict=True))
    return {name: _difference(float(values[name]), drawn[name], True) for name in COLUMNS}


def unpaired_differences(
    ours: Mapping[str, float | None],
    base: Mapping[str, float | None],
    our_total_G: Sequence[int],
    base_total_G: Sequence[int],
) -> dict[str, Difference | None]:
    """The same from the accuracies alone, the two runs' images taken for independent: wider.

    Args:
        ours: accuracy in percent of many, medium, few and all; None for an absent group.
        base: the baseline's.
        our_total_G: test images that we were scored on.
        base_total_G: test images that the baseline was scored on.
    """
    drawn = [
        accuracy_draws(hits(scores, total_G), total_G, seed) if scores["all"] is not None else None
        for seed, (scores, total_G) in enumerate(((ours, our_total_G), (base, base_total_G)), 1)
    ]
    found: dict[str, Difference | None] = {}
    for name in COLUMNS:
        a, b = ours[name], base[name]
        known = a is not None and b is not None and drawn[0] is not None and drawn[1] is not None
        found[name] = _difference(a - b, drawn[0][name] - drawn[1][name], False) if known else None  # type: ignore[operator,index]
    return found


def _difference(value: float, value_B: Floats, paired: bool) -> Difference | None:
    bounds = interval(value_B)
    return Difference(value, *bounds, paired) if bounds and np.isfinite(value) else None


def hits(scores: Mapping[str, float | None], total_G: Sequence[int]) -> list[int]:
    """Images answered rightly in each group, back from the accuracies in percent."""
    return [round((scores[name] or 0) * total / 100) for name, total in zip(GROUPS, total_G, strict=True)]


def spearman(x_N: Floats, y_N: Floats) -> float | None:
    """Spearman's rank correlation; nothing of fewer than three values or where one of the two is constant."""
    from scipy import stats

    return float(stats.spearmanr(x_N, y_N).statistic) if _vary(x_N, y_N) else None


def _vary(x_N: Floats, y_N: Floats) -> bool:
    return len(x_N) > 2 and bool(np.ptp(x_N) > 0 and np.ptp(y_N) > 0)


def twentieths(x_N: Floats, y_N: Floats) -> list[list[float]]:
    """[mean x, mean y] of each of equal parts of the values, by rising x: 20, or fewer of at least nine values."""
    parts = np.array_split(np.argsort(x_N, kind="stable"), min(PARTS, max(1, len(x_N) // LEAST)))
    return [[float(x_N[part].mean()), float(y_N[part].mean())] for part in parts if len(part)]


@dataclass(frozen=True)
class Line:
    """A least-squares line of accuracy on log10 of the training images."""

    slope: float
    """Points for ten times the images."""
    intercept: float
    correlation: float | None


def regression(count_C: Sequence[float], accuracy_C: Sequence[float]) -> Line | None:
    """The line through (log10 images, accuracy); nothing where all classes have as many images."""
    from scipy import stats

    x, y = np.log10(np.asarray(count_C, float)), np.asarray(accuracy_C, float)
    if len(x) < 2 or np.ptp(x) == 0:
        return None
    line = stats.linregress(x, y)
    return Line(float(line.slope), float(line.intercept), float(line.rvalue) if _vary(x, y) else None)


@dataclass(frozen=True)
class Bin:
    """Images whose confidence is in (low, high]."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


def calibration(confidence_N: Floats, right_N: NDArray[np.bool_]) -> tuple[float, list[Bin]]:
    """Expected calibration error in [0, 1] and its bins: 15 of equal width, mean |accuracy - confidence| by images.

    Source: Guo et al. 2017, equation 3.
    """
    which_N = np.clip(np.ceil(confidence_N * BINS).astype(int) - 1, 0, BINS - 1)
    images = np.bincount(which_N, minlength=BINS)
    sure = np.bincount(which_N, confidence_N, BINS) / np.maximum(images, 1)
    right = np.bincount(which_N, right_N.astype(float), BINS) / np.maximum(images, 1)
    bins = [Bin(k / BINS, (k + 1) / BINS, int(images[k]), float(sure[k]), float(right[k])) for k in range(BINS)]
    error = float((images * np.abs(right - sure)).sum() / max(1, len(which_N)))
    return error, [b for b in bins if b.images]


@dataclass(frozen=True)
class Boundary:
    """Where the decision boundary of two classes is among their test images."""

    position: float | None
    """0 at the mean of the head class's images, 1 at that of the tail class's, one half midway; above one half the
    tail's side is the smaller one. Nothing where the means are in the wrong order."""
    tail_right: float
    """Share of the tail class's images on their side."""
    head_right: float


def boundary(tail: Sequence[float], head: Sequence[float]) -> Boundary | None:
    """The place of margin 0 between the mean margins of two classes.

    Args:
        tail: f_I . (f_Tt - f_Th) of the tail class's images.
        head: of its head neighbour's.
    """
    if not len(tail) or not len(head):
        return None
    t, h = np.asarray(tail, float), np.asarray(head, float)
    apart = t.mean() - h.mean()
    position = float(-h.mean() / apart) if apart > 0 else None
    return Boundary(position, float((t > 0).mean()), float((h <= 0).mean()))
