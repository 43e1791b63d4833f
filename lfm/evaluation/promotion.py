"""Whether a new model may take the champion's place: a paired bootstrap over the test images.

Letters in the names give shapes: N test images.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lfm.errors import counted

Answers = NDArray[np.bool_]
CONFIDENCE = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Gain:
    """How much better the new model is on some of the images, in points of accuracy.

    Args:
        points: new less champion.
        low: one-sided lower bound, which the true gain exceeds with `CONFIDENCE`.
        high: one-sided upper bound.
        images: number of images that were compared.
    """

    points: float
    low: float
    high: float
    images: int

    def __str__(self) -> str:
        return f"{self.points:+.2f} points ({self.low:+.2f} to {self.high:+.2f})"


@dataclass(frozen=True)
class Decision:
    """Whether the new model becomes champion, and why.

    Args:
        promote: the new model becomes champion.
        why: the reason, for people.
        all: gain on all images.
        few: gain on the images of few shot classes, if there are any.
    """

    promote: bool
    why: str
    all: Gain
    few: Gain | None


def gate(new_N: Answers, champion_N: Answers, few_N: Answers, seed: int = 0) -> Decision:
    """Promote only if All is better by more than the noise, and Few is not worse by more than the noise.

    Args:
        new_N: which test images the new model gets right.
        champion_N: which the champion gets right; the same images in the same order.
        few_N: which belong to few shot classes.
        seed: seed of the resampling.
    """
    assert new_N.shape == champion_N.shape == few_N.shape and len(new_N)
    rng = np.random.default_rng(seed)
    everything = paired_gain(new_N, champion_N, rng)
    few = paired_gain(new_N[few_N], champion_N[few_N], rng) if few_N.any() else None
    few_words = f"Few {few}" if few else "there are no few shot classes"
    if everything.low <= 0:
        why = f"All {everything} is not better by more than the noise of {counted(everything.images, 'test image')}"
    elif few and few.high < 0:
        why = f"All {everything} is better, but Few {few} is worse by more than the noise"
    else:
        return Decision(True, f"All {everything} is better by more than the noise; {few_words}", everything, few)
    return Decision(False, why, everything, few)


def paired_gain(new_N: Answers, champion_N: Answers, rng: np.random.Generator) -> Gain:
    """Difference in accuracy with one-sided bounds by the percentile bootstrap over images.

    An image adds -1, 0 or 1 to the difference, so a resample is one draw of how many of each there are: exactly the
    distribution of resampled images, in memory that does not grow with them.

    Args:
        new_N: which images the new model gets right.
        champion_N: the same for the champion.
        rng: draws the resamples.
    """
    n = len(new_N)
    lost, won = int((champion_N & ~new_N).sum()), int((new_N & ~champion_N).sum())
    counts = rng.multinomial(n, [lost / n, won / n, (n - lost - won) / n], size=RESAMPLES)
    low, high = np.quantile(100 * (counts[:, 1] - counts[:, 0]) / n, [1 - CONFIDENCE, CONFIDENCE])
    return Gain(100 * (won - lost) / n, float(low), float(high), n)
