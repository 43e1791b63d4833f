"""Makes a table and its pixels of the files in FOLDER/raw, in small pieces; what is done already is kept."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import lfm.data.artifact
import lfm.data.table
from lfm.backbones.towers import DEFAULT as CLIP
from lfm.config.schema import DataConfig
from lfm.data.artifact import add_pixels, write
from lfm.data.sources.base import Files, Source

AS_IS = DataConfig(name="custom", profile="as-is")


def main(root: Path) -> None:
    """Two test images, the others for training."""
    lfm.data.table.SHARD = lfm.data.artifact.CHUNK = 8
    paths = sorted(str(path) for path in (root / "raw").iterdir())
    split_N = np.array([2] * 2 + [0] * (len(paths) - 2), np.int8)
    source = Source(Files(paths), np.arange(len(paths)) % 2, split_N, ("a", "b"), "files")
    steps: dict[str, Callable[[Path], object]] = {
        "table": lambda folder: write(folder, source, AS_IS, 0, root / "work"),
        "data": lambda folder: add_pixels(folder, root / "table", CLIP, AS_IS, root / "work"),
    }
    for name, make in steps.items():
        if not (root / name / "info.json").exists():
            shutil.rmtree(root / name, ignore_errors=True)
            (root / name).mkdir()
            make(root / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
