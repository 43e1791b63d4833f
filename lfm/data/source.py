"""What a data set's loader gives: all its images, before any subset is taken."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lfm.config import InputError
from lfm.text import check_class_names


@dataclass(frozen=True)
class Source:
    """A whole labelled data set in memory; (N, H, W) grey or (N, H, W, 3) colour, uint8."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    classes: tuple[str, ...]
    checksum: str
    """Of the raw files: names the data in every later artifact."""

    def check(self) -> None:
        """Refuse what would only fail after hours.

        Raises:
            InputError: image and label counts differ, a label out of range, a class without images, equal names.
        """
        check_class_names(self.classes)
        for split, images, labels in (
            ("training", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            if len(images) != len(labels):
                raise InputError(
                    f"{len(images)} {split} images but {len(labels)} labels; the two files do not belong together"
                )
            bad = np.flatnonzero((labels < 0) | (labels >= len(self.classes)))
            if len(bad):
                raise InputError(
                    f"{split} image {bad[0]} has label {labels[bad[0]]}, but there are {len(self.classes)} classes "
                    f"(0 to {len(self.classes) - 1}); correct the label or name the missing classes"
                )
            empty = np.flatnonzero(np.bincount(labels, minlength=len(self.classes)) == 0)
            if len(empty):
                raise InputError(
                    f"class {self.classes[empty[0]]!r} has no {split} image; add one or leave the class out"
                )
