"""What a data set's loader gives: where each image is, its class and its split. No image is read yet."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lfm.backbones.text_encoders import check_class_names
from lfm.errors import InputError
from lfm.storage import s3

SPLITS = ("train", "val", "test")
TRAIN, VAL, TEST = range(3)
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


@dataclass(frozen=True)
class Files:
    """Images in files of their own.

    Args:
        paths: local paths or s3:// addresses, one an image.
    """

    paths: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, i: int) -> str:
        """The path."""
        return self.paths[i]

    def read(self, i: int) -> bytes:
        """The file's bytes."""
        path = self.paths[i]
        return s3.read(path) if s3.is_remote(path) else Path(path).read_bytes()


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
class Source:
    """A whole labelled data set before any subset is taken."""

    images: Encoded
    label_N: Index
    """Class of each image."""
    split_N: NDArray[np.int8]
    """Split of each image: a place in `SPLITS`."""
    classes: tuple[str, ...]
    checksum: str
    """Changes when the raw files do: names the data in every later artifact. Local files: of path, size and time."""
    equal_names: bool = False
    """Whether the published class names hold two that are equal (CLIP's ImageNet names do)."""

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
                raise InputError(
                    f"{len(images)} {split} images but {len(labels)} labels; the two files do not belong together"
                )
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
                f"{self.images.name(int(bad[0]))} has label {self.label_N[bad[0]]}, but there are "
                f"{len(self.classes)} classes (0 to {len(self.classes) - 1}); correct the label or name the "
                f"missing classes"
            )
        for split, title in ((TRAIN, "training"), (TEST, "test")):
            count_C = np.bincount(self.label_N[self.split_N == split], minlength=len(self.classes))
            empty = np.flatnonzero(count_C == 0)
            if len(empty):
                raise InputError(
                    f"class {self.classes[empty[0]]!r} has no {title} image; add one or leave the class out"
                )
