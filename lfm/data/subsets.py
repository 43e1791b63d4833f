"""Long-tailed subsets of balanced data sets, as CIFAR-LT in Franklin et al. 2024."""

import numpy as np
from numpy.typing import NDArray

from lfm.errors import InputError

Index = NDArray[np.int64]


def _share(imbalance: float, classes: int, kind: str) -> NDArray[np.float64]:
    """n_k / n_max of each class. (C,)."""
    k = np.arange(classes)
    if kind == "step":
        return np.where(k < (classes + 1) // 2, 1.0, 1 / imbalance)
    return np.asarray(imbalance ** -(k / (classes - 1)))


def profile(max_per_class: int, imbalance: float, classes: int, kind: str = "exponential") -> Index:
    """Training images of each class.

    Args:
        max_per_class: n_max, images of the first class.
        imbalance: gamma = n_1 / n_C.
        classes: C, at least 2.
        kind: exponential, n_k = floor(n_max gamma^{-k / (C - 1)}), k = 0..C-1; or step, the first half of the classes
            n_max and the others n_max / gamma (Buda et al. 2018).

    Returns:
        (C,) images of each class, in label order.

    Raises:
        InputError: a class would have no image.
    """
    # 1000 * 100 ** -0.5 may come out as 99.999...: the nudge keeps the intended integer.
    count_C = (max_per_class * _share(imbalance, classes, kind) + 1e-6).astype(np.int64)
    if count_C[-1] < 1:
        raise InputError(
            f"imbalance {imbalance:g} with {max_per_class} images in the largest class leaves class {classes - 1} "
            f"without images; lower data.imbalance to {max_per_class} or raise data.max_per_class"
        )
    return count_C


def largest(have_C: Index, kind: str, imbalance: float) -> int:
    """The largest n_max whose profile every class can fill."""
    return int((have_C / _share(imbalance, len(have_C), kind)).min() + 1e-6)


def subset(label_N: Index, count_C: Index, seed: int) -> Index:
    """Indices of a subset with n_k images of class k, chosen as LDAM-DRW does.

    One NumPy generator of the given seed; per ascending class its indices are shuffled and the first n_k kept.

    Args:
        label_N: class of each image.
        count_C: images to keep of each class.
        seed: of the choice.

    Returns:
        (sum n_k,) positions, class by class.

    Raises:
        InputError: a class has fewer images than asked for.
    """
    rng = np.random.RandomState(seed)  # the legacy generator: it is what the published subsets were drawn with
    by_class_N = np.argsort(label_N, kind="stable")
    have_C = np.bincount(label_N, minlength=len(count_C))
    short = np.flatnonzero(have_C < count_C)
    if len(short):
        k = int(short[0])
        raise InputError(
            f"class {k} has {have_C[k]} images, {count_C[k]} were asked for; "
            f"lower data.max_per_class or data.val_per_class"
        )
    kept = []
    for members, n in zip(np.split(by_class_N, np.cumsum(have_C)[:-1]), count_C, strict=True):
        rng.shuffle(members)
        kept.append(members[:n])
    return np.concatenate(kept)


def hold_out(label_N: Index, per_class: int) -> tuple[Index, Index]:
    """The last `per_class` images of each class as validation set; the rest. Both in file order."""
    by_class_N = np.argsort(label_N, kind="stable")
    have_C = np.bincount(label_N)
    # Distance of each image from the end of its class, without a loop over classes.
    end_N = np.cumsum(have_C)[label_N[by_class_N]]
    held_N = np.empty(len(label_N), dtype=bool)
    held_N[by_class_N] = end_N - np.arange(len(label_N)) <= per_class
    return np.flatnonzero(~held_N), np.flatnonzero(held_N)
