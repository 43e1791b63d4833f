"""A test split made by the images' content, which stays when images are added.

Whether an image may train follows from its own bytes alone: those whose hash is below a threshold never do, whatever
else is in the folder. So an image that was a test image once is never trained on later, and a model trained before
has not seen the test images of now.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from lfm.data.sources.base import NOWHERE, TEST, TRAIN, Encoded, Index
from lfm.errors import InputError
from lfm.progress import bar

READERS = 16
AT_ONCE = 64
Split = NDArray[np.int8]


def kept_from_training(digest: bytes, share: float) -> bool:
    """Whether the hash of an image's bytes is in the lowest share of all."""
    return int.from_bytes(digest[:8], "big") < share * 2**64


def choose_test(
    digest_N: Sequence[bytes], label_N: Index, split_N: Split, classes: Sequence[str], share: float, per_class: int = 0
) -> Split:
    """Move training images whose hash is below the threshold to the test split, about as many of each class.

    Images with the same bytes stay together, and stay where they are when two classes or two splits have them. Of each
    class the lowest hashes are taken: at most as many as are to be expected of the smallest class. What is left of
    those below the threshold is in no split. A class gives one even if none is below, and keeps one for training.

    Args:
        digest_N: of each image's bytes; empty for files that cannot be read, which stay.
        label_N: class of each image.
        split_N: split of each image; none is in test.
        classes: names of all classes.
        share: the threshold: this share of all images never trains.
        per_class: test images of each class, taken beyond the threshold if need be; 0: `share` of the smallest class.

    Returns:
        The new split of each image. A class of one image, or of copies of one, gives none and does not count as the
        smallest.

    Raises:
        InputError: a class of several images cannot give `per_class` and keep one.
    """
    label, split = label_N.tolist(), split_N.tolist()
    copies: dict[bytes, list[int]] = {}
    for i, digest in enumerate(digest_N):
        copies.setdefault(digest or str(i).encode(), []).append(i)
    units_C: list[list[list[int]]] = [[] for _ in classes]
    for digest in sorted(copies):
        same = copies[digest]
        if digest_N[same[0]] and all(label[i] == label[same[0]] and split[i] == TRAIN for i in same):
            units_C[label[same[0]]].append(same)
    count_C = np.bincount(label_N[split_N == TRAIN], minlength=len(classes))
    able_C = np.array([any(len(same) < n for same in units) for n, units in zip(count_C, units_C, strict=True)])
    n = per_class or max(1, int(share * count_C[able_C].min(initial=2**40) + 1e-9))
    result = split_N.copy()
    for k, units in enumerate(units_C):
        taken, left = 0, int(count_C[k])
        for same in units:
            below = kept_from_training(digest_N[same[0]], share)
            fits = taken + len(same) <= n and (below or bool(per_class) or not taken)
            if (fits or below) and len(same) < left:
                result[same] = TEST if fits else NOWHERE
                taken, left = taken + len(same) * fits, left - len(same)
        if able_C[k] and not (taken or per_class):  # each group of copies is larger than n
            some = [same for same in units if len(same) < count_C[k]]
            result[min(some, key=lambda same: (result[same[0]] == TRAIN, len(same)))] = TEST
        if able_C[k] and taken < per_class:
            raise InputError(
                f"class {classes[k]!r} can give only {taken} of its {count_C[k]} training images to the test split, "
                f"which the data lack, and keep one, not {per_class}: copies of an image stay together, and those that "
                f"two classes or splits share stay where they are; add images, or set data.test_per_class to "
                f"{taken or 'less'}{' or less' if taken else ''}"
            )
    return result


def digests(images: Encoded) -> list[bytes]:
    """sha256 of each image's bytes, empty where there is no such file (a link to nothing); several threads read."""

    def some(start: int) -> list[bytes]:
        found = []
        for i in range(start, min(start + AT_ONCE, len(images))):
            try:
                found.append(hashlib.sha256(images.read(i)).digest())
            except FileNotFoundError:  # an image that cannot be used, which the build lists
                found.append(b"")
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
