"""Small data sets made of arrays or of files."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lfm.backbones.towers import Preprocess
from lfm.config.schema import DataConfig
from lfm.data.artifact import add_pixels, judge, write
from lfm.data.sources.base import TEST, TRAIN, Files, Source

SMALL = DataConfig(name="fashion-mnist", max_per_class=40, imbalance=8, val_per_class=15)
AS_IS = DataConfig(name="custom", profile="as-is")
NATIVE = Preprocess(0, (), (), "bicubic", "squash")


def made(folder: Path, source: Source, config: DataConfig = SMALL, seed: int = 0, to: Preprocess = NATIVE) -> Path:
    """Both steps of the artifact."""
    table = folder.with_name(folder.name + "-table")
    table.mkdir()
    folder.mkdir()
    write(table, source, config, seed, folder.with_name(folder.name + "-work"))
    judge(table, config)
    add_pixels(folder, table, to, config, folder.with_name(folder.name + "-pixels"))
    return folder


def contents(images: NDArray[np.uint8]) -> list[bytes]:
    return [image.tobytes() for image in images]


def files(folder: Path, data: list[bytes], classes: int = 2, test: int = 2) -> Source:
    """The first `test` images are test images; labels go round."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{k:05d}.img" for k in range(len(data))]
    for path, content in zip(paths, data, strict=True):
        path.write_bytes(content)
    split_N = np.array([TEST] * test + [TRAIN] * (len(data) - test), np.int8)
    names = tuple(f"kind {k}" for k in range(classes))
    return Source(Files([str(p) for p in paths]), np.arange(len(data)) % classes, split_N, names, "files")
