"""A balanced test split, made by the images' content."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from lfm.data.sources.base import TEST, TRAIN, Encoded, Index
from lfm.errors import InputError
from lfm.progress import bar

READERS = 16
AT_ONCE = 64
Split = NDArray[np.int8]


def choose_test(
    digest_N: Sequence[bytes], label_N: Index, split_N: Split, classes: Sequence[str], per_class: int
) -> Split:
    """Move the same number of training images of each class to the test split.

    Images with the same bytes stay together, and stay where they are when two classes or two splits have them. A
    class gives its images in the order of their digests, so images added elsewhere change nothing, and an added image
    takes the place of at most a few.

    Args:
        digest_N: of each image's bytes.
        label_N: class of each image.
        split_N: split of each image; none is in test.
        classes: names of all classes.
        per_class: test images of each class; 0: a fifth of the smallest class, 1 to 100.

    Returns:
        The new split of each image.

    Raises:
        InputError: a class cannot give so many and keep one.
    """
    label, split = label_N.tolist(), split_N.tolist()
    copies: dict[bytes, list[int]] = {}
    for i, digest in enumerate(digest_N):
        copies.setdefault(digest, []).append(i)
    units_C: list[list[list[int]]] = [[] for _ in classes]
    for digest in sorted(copies):
        same = copies[digest]
        if all(label[i] == label[same[0]] and split[i] == TRAIN for i in same):
            units_C[label[same[0]]].append(same)
    count_C = np.bincount(label_N[split_N == TRAIN], minlength=len(classes)).tolist()
    n = per_class or min(max(min(count_C) // 5, 1), 100)
    result = split_N.copy()
    for name, count, units in zip(classes, count_C, units_C, strict=True):
        if count <= n:
            most = min(count_C) - 1
            lower = f", or set data.test_per_class to {most} or less" if most else " or leave the class out"
            raise InputError(
                f"class {name!r} has {count} training images, too few to give {n} to the test split, which the data "
                f"lack, and keep one; add images{lower}"
            )
        taken = 0
        for same in units:
            if taken + len(same) <= n:
                result[same] = TEST
                taken += len(same)
        if taken < n:
            raise InputError(
                f"class {name!r} can give only {taken} of its {count} images to the test split, not {n}: copies of "
                f"one image stay together, and those that two classes or splits share stay where they are; remove the "
                f"copies{f' or set data.test_per_class to {taken}' if taken else ''}"
            )
    return result


def digests(images: Encoded) -> list[bytes]:
    """sha256 of each image's bytes; several threads read."""

    def some(start: int) -> list[bytes]:
        found = []
        for i in range(start, min(start + AT_ONCE, len(images))):
            try:
                found.append(hashlib.sha256(images.read(i)).digest())
            except OSError as error:
                raise InputError(f"{images.name(i)} cannot be read ({error.strerror or error})") from error
        return found

    result: list[bytes] = []
    pool = ThreadPoolExecutor(READERS)
    try:
        with bar(len(images), "hash", "images") as progress:
            for found in pool.map(some, range(0, len(images), AT_ONCE)):
                result += found
                progress.update(len(found))
    finally:
        pool.shutdown(cancel_futures=True)
    return result
