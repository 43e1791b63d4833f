"""From a data set artifact to a tower's input: the fast path.

Small images lie on the device as uint8 and are resized there, after mixing: resizing and normalising are linear, so the
order does not matter. Large ones come from a memory map of decoded pixels, or are decoded by a pool of threads.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lfm.backbone import Preprocess
from lfm.data.artifact import read_info
from lfm.data.decode import decode, fitted, pixels_of
from lfm.data.source import SPLITS
from lfm.data.table import Table, open_table

PIL_ONE = 1 << 22
"""What PIL's resampling counts as 1 in its whole numbers."""
DEVICE_SHARE = 0.25
"""A split whose pixels take up to this share of a GPU's memory lies there whole."""


def resize_rows(length: int, to: int, interpolation: str) -> Tensor:
    """The resampling of one axis as a matrix: PIL's antialiased kernels, in its arithmetic.

    Args:
        length: of the axis.
        to: its length after resizing.
        interpolation: bicubic (a = -1/2) or bilinear.

    Returns:
        (to, length) float64, rows of sum 1.
    """
    scale = length / to
    wide = max(scale, 1.0)  # of the kernel: it grows when shrinking, which is the antialiasing
    reach = wide * (2 if interpolation == "bicubic" else 1)
    center = (torch.arange(to, dtype=torch.float64) + 0.5) * scale
    place = torch.arange(length)
    first = (center - reach + 0.5).long().clamp(min=0)[:, None]
    last = (center + reach + 0.5).long().clamp(max=length)[:, None]
    x = ((place + 0.5 - center[:, None]) / wide).abs()
    if interpolation == "bicubic":
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weight = torch.where(x < 1, near, torch.where(x < 2, far, 0))
    else:
        weight = (1 - x).clamp(min=0)
    weight = weight * ((place >= first) & (place < last))
    return weight / weight.sum(dim=1, keepdim=True)


def _operators(height: int, width: int, to: Preprocess) -> tuple[Tensor, Tensor] | None:
    """Row and column matrices for resize and centre crop, or nothing where neither changes the image."""
    size = to.size
    if not size or (height, width) == (size, size):
        return None
    tall, wide = (size, size) if to.resize_mode == "squash" else _shortest(height, width, size)
    top, left = round((tall - size) / 2), round((wide - size) / 2)
    return (
        resize_rows(height, tall, to.interpolation)[top : top + size],
        resize_rows(width, wide, to.interpolation)[left : left + size],
    )


def _shortest(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width when the shorter side becomes `size`."""
    return (size, int(size * width / height)) if height <= width else (int(size * height / width), size)


@dataclass
class Images:
    """A split, asked for by positions. Tensors are on `device`.

    Args:
        fetch: positions (B,) on the CPU -> (B, channels, H, W) uint8.
        shape: (channels, H, W) of what `fetch` gives.
        label_N: (N,) int64, on the device.
        to: the tower's preprocessing.
        held: all pixels lie on the device: fetching ahead gains nothing.
    """

    fetch: Callable[[Tensor], Tensor]
    shape: tuple[int, int, int]
    label_N: Tensor
    to: Preprocess
    held: bool

    def __post_init__(self) -> None:
        self.device = self.label_N.device
        operators = _operators(*self.shape[1:], self.to)
        self._rows: Tensor | None = None
        self._columns: Tensor | None = None
        if operators:
            self._exact = [(m * PIL_ONE).round_().to(self.device) for m in operators]
            self._rows, self._columns = (m.float().to(self.device) for m in operators)
        self._mean, self._std = (
            torch.tensor(v, dtype=torch.float32, device=self.device)[:, None, None] for v in (self.to.mean, self.to.std)
        )

    def __len__(self) -> int:
        return len(self.label_N)

    @property
    def side(self) -> int:
        """Pixels of the tower's input on its longer side."""
        return self.to.size or max(self.shape[1:])

    def unit(self, pixels: Tensor) -> Tensor:
        """uint8 -> [0, 1], float32, on the device."""
        return pixels.to(self.device, non_blocking=True).float().div_(255)

    def finish(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normalise, resize and crop images in [0, 1], mixed or not. (B, channels, side, side), channels last.

        Each row of a resampling sums to 1, so normalising first is the same, on fewer pixels.

        Args:
            x: (B, channels, H, W) float32.
            dtype: of the two products that resize, and of the result where there are any.
        """
        x = (x - self._mean) / self._std
        if self._rows is not None and self._columns is not None:
            x = self._rows.to(dtype) @ (x.to(dtype) @ self._columns.to(dtype).T)
        return x.contiguous(memory_format=torch.channels_last)

    def exact(self, index_B: Tensor) -> Tensor:
        """The tower's input, the same to the last bit as open_clip's evaluation transform gives.

        PIL multiplies whole numbers and rounds after each of its two passes; float64 holds these numbers exactly.
        """
        pixels = self.fetch(index_B)
        if self._rows is None:
            return self.finish(self.unit(pixels))
        rows, columns = self._exact
        x = (pixels.to(self.device).double() @ columns.T).div_(PIL_ONE).add_(0.5).floor_().clamp_(0, 255)
        x = (rows @ x).div_(PIL_ONE).add_(0.5).floor_().clamp_(0, 255).float().div_(255)
        return ((x - self._mean) / self._std).contiguous(memory_format=torch.channels_last)


def open_split(folder: Path, split: str, device: torch.device | str = "cpu") -> Images:
    """A split of a data set artifact.

    Raises:
        InputError: the folder is no data set artifact, or one without pixels.
    """
    assert split in SPLITS
    device, info = torch.device(device), read_info(folder)
    to = Preprocess.of(info["preprocess"])
    label_N = torch.from_numpy(np.load(folder / f"{split}_labels.npy", allow_pickle=False)).to(device)
    if info["pixels"] == "encoded":
        decoder = _Decoder(open_table(folder, split), to, info["max_megapixels"])
        return Images(decoder, (3, to.size, to.size), label_N, to, held=False)
    pixels = torch.from_numpy(np.load(folder / f"{split}_images.npy", mmap_mode="c", allow_pickle=False))
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    held = device.type == "cpu" or pixels.numel() < DEVICE_SHARE * torch.cuda.get_device_properties(device).total_memory
    if held:
        pixels = pixels.to(device)
    shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
    return Images(lambda index_B: pixels[index_B.to(pixels.device)], shape, label_N, to, held)


class _Decoder:
    """Decodes the images of a batch with a pool of threads (PIL lets go of the interpreter while it decodes)."""

    def __init__(self, table: Table, to: Preprocess, max_megapixels: float) -> None:
        self.table, self.to, self.limit = table, to, max_megapixels
        self.pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "decode")

    def _one(self, i: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        return pixels_of(fitted(decode(self.table.encoded(i), self.table.name(i), self.limit), self.to))

    def __call__(self, index_B: Tensor) -> Tensor:
        images = np.stack(list(self.pool.map(self._one, index_B.tolist())))
        return torch.from_numpy(images).permute(0, 3, 1, 2)
