"""What a data set's loader gives: where each image is, its class and its split. No image is read yet."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lfm.backbones.text_encoders import check_class_names
from lfm.errors import InputError, counted
from lfm.storage import s3

SPLITS = ("train", "val", "test")
TRAIN, VAL, TEST = range(3)
NOWHERE = 3
"""In no split: neither trained on nor scored."""
Index = NDArray[np.int64]


class Encoded(Protocol):
    """Images as encoded files (JPEG, PNG, ...), read one at a time, from any thread."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """What an error calls image i: its path, or its place in an archive."""
        ...

    def read(self, i: int) -> bytes:
        """The bytes of image i. Raises OSError (FileNotFoundError, PermissionError) or InputError."""
        ...


def stamp_of(status: os.stat_result) -> str:
    """Size and time of a local file."""
    return f"{status.st_size} {status.st_mtime_ns}"


@dataclass(frozen=True)
class Files:
    """Images in files of their own.

    Args:
        paths: local paths or s3:// addresses, one an image.
        stamps: of each file when it was listed, as `stamp_of` has them; none: changes are not looked for.
    """

    paths: Sequence[str]
    stamps: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, i: int) -> str:
        """The path."""
        return self.paths[i]

    def read(self, i: int) -> bytes:
        """The file's bytes.

        Raises:
            InputError: it is another one than that which was listed.
        """
        path, stamp = self.paths[i], self.stamps[i] if self.stamps else ""
        if s3.is_remote(path):
            data, found = s3.read_stamped(path)
        else:
            with Path(path).open("rb") as file:
                data, found = file.read(), stamp_of(os.fstat(file.fileno()))
        if stamp and found and found != stamp:
            raise InputError(f"{path} has changed since it was listed; begin again once the data are at rest")
        return data


@dataclass(frozen=True)
class Arrays:
    """Images that come as one array, given out as PNG, which keeps every pixel.

    Args:
        pixels: (N, H, W) grey or (N, H, W, 3) colour, uint8.
        label: what an error calls the array.
    """

    pixels: NDArray[np.uint8]
    label: str

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, i: int) -> str:
        """The place in the array."""
        return f"{self.label} image {i}"

    def read(self, i: int) -> bytes:
        """The image as PNG."""
        out = io.BytesIO()
        Image.fromarray(self.pixels[i]).save(out, "png", compress_level=1)
        return out.getvalue()


@dataclass(frozen=True)
class Joined:
    """Several collections, one after the other."""

    parts: Sequence[Encoded]
    starts: Index = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", np.cumsum([0, *map(len, self.parts)]))

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _place(self, i: int) -> tuple[Encoded, int]:
        part = int(np.searchsorted(self.starts, i, side="right")) - 1
        return self.parts[part], i - int(self.starts[part])

    def name(self, i: int) -> str:
        """As the part says."""
        part, k = self._place(i)
        return part.name(k)

    def read(self, i: int) -> bytes:
        """As the part says."""
        part, k = self._place(i)
        return part.read(k)


@dataclass(frozen=True)
class Chosen:
    """Some images of a collection.

    Args:
        images: the collection.
        place_N: positions in it.
    """

    images: Encoded
    place_N: Index

    def __len__(self) -> int:
        return len(self.place_N)

    def name(self, i: int) -> str:
        """As the collection says."""
        return self.images.name(int(self.place_N[i]))

    def read(self, i: int) -> bytes:
        """As the collection says."""
        return self.images.read(int(self.place_N[i]))


@dataclass(frozen=True)
class Source:
    """A whole labelled data set before any subset is taken."""

    images: Encoded
    label_N: Index
    """Class of each image."""
    split_N: NDArray[np.int8]
    """Split of each image: a place in `SPLITS`, or `NOWHERE`."""
    classes: tuple[str, ...]
    checksum: str
    """Changes when the raw files do: names the data in every later artifact. Local files: of path, size and time."""
    equal_names: bool = False
    """Whether the published class names hold two that are equal (CLIP's ImageNet names do)."""
    test_share: float = 0.0
    """Of a test split made by content (`lfm.data.sources.test_split`): the threshold; 0: the data have one."""
    without_test: bool = False
    """Whether classes without test images are wanted so."""

    @classmethod
    def from_arrays(
        cls,
        train: tuple[NDArray[np.uint8], NDArray[np.integer]],
        test: tuple[NDArray[np.uint8], NDArray[np.integer]],
        classes: Sequence[str],
        checksum: str,
    ) -> "Source":
        """A data set of two arrays of images, each with its labels.

        Raises:
            InputError: image and label counts differ.
        """
        for split, (images, labels) in (("training", train), ("test", test)):
            if len(images) != len(labels):
                there = counted(len(images), f"{split} image")
                raise InputError(f"{there} but {counted(len(labels), 'label')}; the two files do not belong together")
        return cls(
            Joined([Arrays(train[0], "training"), Arrays(test[0], "test")]),
            np.concatenate([train[1], test[1]]).astype(np.int64),
            np.repeat(np.array([TRAIN, TEST], np.int8), [len(train[1]), len(test[1])]),
            tuple(classes),
            checksum,
        )

    def check(self) -> None:
        """Refuse what would only fail after hours.

        Raises:
            InputError: image and label counts differ, a label out of range, a class without training or test images,
                equal or empty names.
        """
        if len(self.classes) < 2:
            raise InputError(f"there is {len(self.classes)} class; a classifier needs at least two")
        check_class_names(self.classes, allow_equal=self.equal_names)
        assert len(self.images) == len(self.label_N) == len(self.split_N)
        bad = np.flatnonzero((self.label_N < 0) | (self.label_N >= len(self.classes)))
        if len(bad):
            raise InputError(
                f"{self.images.name(int(bad[0]))} has label {self.label_N[bad[0]]}, but the labels of the "
                f"{counted(len(self.classes), 'class', 'classes')} are 0 to {len(self.classes) - 1}; correct the label "
                f"or name the missing classes"
            )
        for split, title in ((TRAIN, "training"), (TEST, "test")):
            count_C = np.bincount(self.label_N[self.split_N == split], minlength=len(self.classes))
            empty = np.flatnonzero(count_C == 0)
            if len(empty) and not (split == TEST and self.without_test):
                raise InputError(
                    f"class {self.classes[empty[0]]!r} has no {title} image; add one or leave the class out"
                )
