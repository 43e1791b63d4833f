"""The data set on disk: one folder, memory-mapped arrays, a manifest.

    train_images.npy  (N, H, W) or (N, H, W, 3) uint8      train_labels.npy  (N,) int64
    val_*, test_*     the same                             info.json         classes, counts, source

Small images only: they stay uint8 and are mixed and normalised on the device.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lfm.config import DataConfig, InputError
from lfm.data.longtail import hold_out, profile, subset
from lfm.data.source import Source

SPLITS = ("train", "val", "test")


def write(folder: Path, source: Source, config: DataConfig, seed: int) -> None:
    """Take the long-tailed subset, the validation set and the test set, and write them.

    Args:
        folder: empty; filled.
        source: the whole data set; checked here.
        config: profile and validation set.
        seed: of the subset.

    Raises:
        InputError: bad labels or names, or too few images for the profile.
    """
    source.check()
    count_C = profile(config.max_per_class, config.imbalance, len(source.classes))
    rest_N, val_N = hold_out(source.train_labels, config.val_per_class)
    kept_N = rest_N[subset(source.train_labels[rest_N], count_C, seed)]
    splits = {
        "train": (source.train_images[kept_N], source.train_labels[kept_N]),
        "val": (source.train_images[val_N], source.train_labels[val_N]),
        "test": (source.test_images, source.test_labels),
    }
    for name, (images, labels) in splits.items():
        np.save(folder / f"{name}_images.npy", images)
        np.save(folder / f"{name}_labels.npy", labels)
    train = splits["train"][0].astype(np.float64) / 255
    info = {
        "name": config.name,
        "classes": list(source.classes),
        "counts": count_C.tolist(),
        "imbalance": config.imbalance,
        "source": source.checksum,
        "subset_seed": seed,
        "mean": float(train.mean()),
        "std": float(train.std()),
    }
    (folder / "info.json").write_text(json.dumps(info, indent=1))


def read_info(folder: Path) -> dict[str, Any]:
    """Classes, training counts and origin of a data set artifact."""
    try:
        info: dict[str, Any] = json.loads((folder / "info.json").read_text())
    except OSError as error:
        raise InputError(f"{folder} is not a data set artifact: no info.json; run the prepare step") from error
    return info


@dataclass(frozen=True)
class Images:
    """A split on a device: uint8 pixels stay as they are until a batch is asked for."""

    pixels: Tensor
    """(N, channels, H, W) uint8."""
    label_N: Tensor
    """(N,) int64."""
    mean: float
    std: float

    def batch(self, index_B: Tensor) -> Tensor:
        """Images in [0, 1], (B, channels, H, W) float32, not yet normalised."""
        return self.pixels[index_B].float().div_(255)

    def normalise(self, x: Tensor) -> Tensor:
        """(x - mean) / std, after mixing: both are linear, so the order does not matter."""
        return (x - self.mean) / self.std


def open_split(folder: Path, split: str, device: torch.device | str = "cpu") -> Images:
    """A split of a data set artifact, moved to a device whole.

    Raises:
        InputError: the folder is no data set artifact.
    """
    assert split in SPLITS
    info = read_info(folder)
    pixels = torch.from_numpy(np.load(folder / f"{split}_images.npy", mmap_mode="c", allow_pickle=False))
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    label_N = torch.from_numpy(np.load(folder / f"{split}_labels.npy", allow_pickle=False))
    return Images(pixels.to(device), label_N.to(device), info["mean"], info["std"])
