"""Scenes of more than 8 bits, and data sets of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfm.backbones.towers import Preprocess
from lfm.config.schema import DataConfig
from lfm.data.artifact import add_pixels, judge, write
from lfm.data.sources.base import TEST, TRAIN, Files, Source
from tests.deep import jpeg2000, pgm, png16, tiff

Array = NDArray[Any]
NATIVE = Preprocess(0, (), (), "bicubic", "squash")
SIDE = 24


def scenes(low: float, high: float, count: int = 10) -> list[NDArray[np.float64]]:
    """Pictures that use different parts of the range, so that a guess for each would scale each by another factor."""
    rng = np.random.default_rng(5)
    found = []
    for k in range(count):
        top = low + (high - low) * (0.25 + 0.75 * k / (count - 1))
        picture = low + (top - low) * rng.random((SIDE, SIDE))
        picture[0, 0] = top
        found.append(picture)
    found[-1][0, :2] = low, high
    return found


def whole(dtype: Any) -> Callable[[NDArray[np.float64]], Array]:
    return lambda picture: np.floor(picture).astype(dtype)


# name -> least and greatest level, how a file is made of them, the range that is expected (None: percentiles)
KINDS: dict[str, tuple[float, float, Callable[[NDArray[np.float64]], bytes], tuple[float, float] | None]] = {
    "8 bits in 16": (0, 255, lambda p: png16(whole("u2")(p)), (0, 255)),
    "10 bits in a TIFF": (0, 1023, lambda p: tiff(whole("<u2")(p)), (0, 1023)),
    "12 bits in a PNG": (0, 4095, lambda p: png16(whole("u2")(p)), (0, 4095)),
    "14 bits in a TIFF": (0, 16383, lambda p: tiff(whole("<u2")(p)), (0, 16383)),
    "16 bits": (0, 65535, lambda p: png16(whole("u2")(p)), (0, 65535)),
    "16 bits in JPEG 2000": (0, 65535, lambda p: jpeg2000(whole("u2")(p)), (0, 65535)),
    "a PGM of 10 bits, which PIL scales": (0, 1023, lambda p: pgm(whole("u2")(p), 1023), (0, 65535)),
    "12 bits in int32": (0, 4095, lambda p: tiff(whole("<i4")(p)), (0, 4095)),
    "floats 0 to 1": (0, 1, lambda p: tiff(p.astype("<f4")), (0, 1)),
    "floats -1 to 1": (-1, 1, lambda p: tiff(p.astype("<f4")), (-1, 1)),
    "floats 0 to 255": (0, 255, lambda p: tiff(p.astype("<f4")), (0, 255)),
    "hundredths of a kelvin": (29_000, 31_500, lambda p: tiff(whole("<u2")(p)), None),
    "degrees": (12.5, 41.25, lambda p: tiff(p.astype("<f4")), None),
    "Hounsfield units": (-1000, 2000, lambda p: tiff(whole("<i2")(p)), None),
    "unsigned 32 bits": (3_000_000_000, 4_000_000_000, lambda p: tiff(whole("<u4")(p)), None),
}


def build(folder: Path, data: list[bytes], **fields: Any) -> Path:
    """Both steps of an artifact; the first two images are test images, the labels go round."""
    raw = folder / "raw"
    raw.mkdir(parents=True)
    paths = [raw / f"{k}.img" for k in range(len(data))]
    for path, content in zip(paths, data, strict=True):
        path.write_bytes(content)
    split_N = np.array([TEST] * 2 + [TRAIN] * (len(data) - 2), np.int8)
    source = Source(Files([*map(str, paths)]), np.arange(len(data)) % 2, split_N, ("cat", "dog"), "files")
    config = DataConfig(name="custom", profile="as-is", **fields)
    table, whole_ = folder / "table", folder / "data"
    for each in (table, whole_):
        each.mkdir()
    write(table, source, config, 0, folder / "work")
    judge(table, config)
    add_pixels(whole_, table, NATIVE, config, folder / "pixels")
    return whole_
