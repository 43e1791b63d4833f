"""A split of a data set artifact, and the way from its pixels to a tower's input.

Small images are kept on the device as uint8 and resized there. Large ones come from a memory map of decoded pixels, or
are decoded by a pool of threads.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lfm.backbones.towers import Preprocess
from lfm.data.artifact import read_info
from lfm.data.decoding import decode, decode_fast, fitted, pixels_of
from lfm.data.depth import Ranges, ranges_in
from lfm.data.resize import Resampling, crop, resized
from lfm.data.sources.base import SPLITS
from lfm.data.table import Table, open_table

DEVICE_SHARE = 0.25
"""A split whose pixels take up to this share of a GPU's memory is kept there whole."""
PIECE = 8
"""Images that a CPU works on at a time: what they become on the way stays in its cache."""


@dataclass
class Images:
    """A split, asked for by positions. Tensors are on `device`.

    Args:
        fetch: positions (B,) on the CPU -> (B, channels, H, W) uint8, channels innermost in memory.
        shape: (channels, H, W) of what `fetch` gives.
        label_N: (N,) int64, on the device.
        to: the tower's preprocessing.
        held: all pixels lie on the device: fetching ahead gains nothing.
        resize: of training images, as `train.resize`.
        fetch_fast: like `fetch` within two grey levels, if there is a faster way; for training.
    """

    fetch: Callable[[Tensor], Tensor]
    shape: tuple[int, int, int]
    label_N: Tensor
    to: Preprocess
    held: bool
    resize: str = "fast"
    fetch_fast: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        self.device, size = self.label_N.device, self.to.size
        native = not size or self.shape[1:] == (size, size)
        self._resampling = None if native else Resampling(self.shape, self.to, self.device)
        channels, _, width = self.shape
        mean, std = (torch.tensor(v).expand(channels) for v in (self.to.mean, self.to.std))
        # A value for each number of a row of pixels: several times as fast as one for each channel.
        self._scale, self._shift = (v.repeat(width).to(self.device) for v in (1 / (255 * std), -mean / std))
        self._mean, self._std = (v.repeat(size or width).to(self.device) for v in (mean, std))

    def __len__(self) -> int:
        return len(self.label_N)

    @property
    def side(self) -> int:
        """Pixels of the tower's input on its longer side."""
        return self.to.size or max(self.shape[1:])

    def fetch_training(self, index_B: Tensor) -> Tensor:
        """The pixels to train on."""
        return (self.fetch_fast or self.fetch)(index_B) if self.resize == "fast" else self.fetch(index_B)

    def empty(self, count: int, dtype: torch.dtype) -> Tensor:
        """Room for the tower's input, (count, channels, side, side), channels last."""
        height, width = (self.to.size, self.to.size) if self._resampling else self.shape[1:]
        return torch.empty(
            (count, self.shape[0], height, width),
            dtype=dtype,
            device=self.device,
            memory_format=torch.channels_last,
        )

    @property
    def resized(self) -> bool:
        """Whether images are smaller or larger than the tower's input until they are finished."""
        return self._resampling is not None

    def pieces(self, count: int, split: bool = True) -> Iterator[slice]:
        """Which images to work on together: all, or on a CPU, where asked to split, a few."""
        size = PIECE if split and self.device.type == "cpu" else max(count, 1)
        return (slice(begin, begin + size) for begin in range(0, count, size))

    def finish(self, x: Tensor, out: Tensor) -> None:
        """Normalise, resize and crop images, mixed or not, without PIL's rounding.

        Each row of a resampling sums to 1, so normalising first is the same, on fewer pixels.

        Args:
            x: (B, channels, H, W) float32 grey levels, 0 to 255.
            out: of `empty`, filled; the products that resize are made in its dtype.
        """
        levels, out = torch.addcmul(self._shift, _interleaved(x), self._scale), _interleaved(out)
        if self._resampling:
            with self._no_autocast():
                self._resampling.linear(levels.to(out.dtype), out)
        else:
            out.copy_(levels)

    def normalise(self, x: Tensor, out: Tensor) -> None:
        """Normalise images of the tower's size.

        Args:
            x: (B, channels, side, side) float32 grey levels, 0 to 255.
            out: of `empty`, filled.
        """
        _interleaved(out).copy_((_interleaved(x) / 255 - self._mean) / self._std)

    def finish_exactly(self, pixels: Tensor) -> Tensor:
        """The tower's input, the same to the last bit as open_clip's evaluation transform gives.

        Args:
            pixels: (B, channels, H, W) uint8.

        Returns:
            (B, channels, side, side) float32, channels last.
        """
        done = self.empty(len(pixels), torch.float32)
        for here in self.pieces(len(pixels)):
            x = _interleaved(pixels[here].to(self.device, non_blocking=True).float())
            bands = self._resampling.exact(x) if self._resampling else [(slice(None), x)]
            with self._no_autocast():
                for rows, grey in bands:  # one at a time, while it is in the cache
                    torch.div(grey.div_(255).sub_(self._mean), self._std, out=_interleaved(done[here])[:, rows])
        return done

    def _no_autocast(self) -> torch.autocast:
        """No autocast, which scoring and training may be within: the products are in the types they are given."""
        return torch.autocast(self.device.type, enabled=False)

    def exact(self, index_B: Tensor) -> Tensor:
        """`finish_exactly` of the images at some positions."""
        return self.finish_exactly(self.fetch(index_B))


def _interleaved(x: Tensor) -> Tensor:
    """(B, channels, H, W) -> (B, H, W channels); nothing moves where the channels are innermost already."""
    return x.permute(0, 2, 3, 1).flatten(2)


def open_split(
    folder: Path, split: str, device: torch.device | str = "cpu", resize: str = "fast", workers: int = 0
) -> Images:
    """A split of a data set artifact.

    Args:
        folder: of the artifact.
        split: train, val or test.
        device: where its tensors go.
        resize: of training images, as `train.resize`.
        workers: threads that decode, as `train.workers`.

    Raises:
        InputError: the folder is no data set artifact, or one without pixels.
    """
    assert split in SPLITS
    device, info = torch.device(device), read_info(folder)
    to = Preprocess.of(info["preprocess"])
    label_N = torch.from_numpy(np.load(folder / f"{split}_labels.npy", allow_pickle=False)).to(device)
    if info["pixels"] == "encoded":
        decoder = _Decoder(open_table(folder, split), to, info["max_megapixels"], ranges_in(info), workers)
        shape = (3, to.size, to.size)
        return Images(
            partial(decoder, fit=_fitted_as_pil), shape, label_N, to, False, resize, partial(decoder, fit=_fitted_fast)
        )
    pixels = torch.from_numpy(np.load(folder / f"{split}_images.npy", mmap_mode="c", allow_pickle=False))
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    held = device.type == "cpu" or pixels.numel() < DEVICE_SHARE * torch.cuda.get_device_properties(device).total_memory
    if held:
        pixels = pixels.to(device)
    shape = (pixels.shape[3], pixels.shape[1], pixels.shape[2])
    return Images(partial(_rows_of, pixels), shape, label_N, to, held, resize)


def _rows_of(pixels: Tensor, index_B: Tensor) -> Tensor:
    # index_select copies whole images at a time; indexing goes pixel by pixel.
    return pixels.index_select(0, index_B.to(pixels.device)).permute(0, 3, 1, 2)


def _fitted_as_pil(data: memoryview, name: str, limit: float, ranges: Ranges, to: Preprocess) -> NDArray[np.uint8]:
    return pixels_of(fitted(decode(data, name, limit, ranges=ranges), to))


def _fitted_fast(data: memoryview, name: str, limit: float, ranges: Ranges, to: Preprocess) -> NDArray[np.uint8]:
    """The same with torch's 8-bit kernels, five times as fast; a few pixels in a thousand differ by one or two."""
    x = decode_fast(data, name, limit, ranges)
    size = resized(x.shape[1], x.shape[2], to)
    x = F.interpolate(x[None], size, mode=to.interpolation, antialias=True)[0].permute(1, 2, 0)
    return x[crop(*size, to.size)].numpy()


class _Decoder:
    """Decodes the images of a batch with a pool of threads (PIL lets go of the interpreter while it decodes)."""

    def __init__(self, table: Table, to: Preprocess, max_megapixels: float, ranges: Ranges, workers: int) -> None:
        self.table, self.to, self.limit, self.ranges = table, to, max_megapixels, ranges
        cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.pool = ThreadPoolExecutor(workers or max(1, cores), "decode")

    def __call__(
        self, index_B: Tensor, fit: Callable[[memoryview, str, float, Ranges, Preprocess], NDArray[np.uint8]]
    ) -> Tensor:
        def one(i: int) -> NDArray[np.uint8]:
            return fit(self.table.encoded(i), self.table.name(i), self.limit, self.ranges, self.to)

        return torch.from_numpy(np.stack(list(self.pool.map(one, index_B.tolist())))).permute(0, 3, 1, 2)
