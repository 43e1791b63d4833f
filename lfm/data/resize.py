"""Resizing a batch of images of one size: each axis is a product with a matrix.

Legend: B images, H x W pixels, S x S pixels of the result, C channels. Images are (B, H, W C): the channels of a pixel
lie side by side, as they do in memory and as convolutions on the CPU want them, so nothing is ever moved about.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lfm.backbones.towers import Preprocess
from lfm.data.decoding import fitted, pixels_of

PIL_ONE = 1 << 22
"""What PIL's resampling counts as 1 in its whole numbers."""
HIGH = 1 << 11
"""Such a number is split into HIGH times one part and the other, each small enough for exact sums in float32."""
BANDS = 4
"""Parts of a product: each leaves out most of the matrix's zeros."""


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


def resized(height: int, width: int, to: Preprocess) -> tuple[int, int]:
    """Height and width after resizing and before the crop."""
    size = to.size
    if to.resize_mode == "squash":
        return size, size
    return (size, int(size * width / height)) if height <= width else (int(size * height / width), size)


def crop(tall: int, wide: int, size: int) -> tuple[slice, slice]:
    """Rows and columns of the centre."""
    top, left = round((tall - size) / 2), round((wide - size) / 2)
    return slice(top, top + size), slice(left, left + size)


class Resampling:
    """Resize and centre crop.

    Args:
        shape: (C, H, W).
        to: size, kernel and mode.
        device: of the images.
    """

    def __init__(self, shape: tuple[int, int, int], to: Preprocess, device: torch.device) -> None:
        channels, height, width = shape
        tall, wide = resized(height, width, to)
        rows, columns = crop(tall, wide, to.size)
        down = resize_rows(height, tall, to.interpolation)[rows]
        # All channels in one product. Two thirds of the factors are zero: still faster than moving channels about.
        across = torch.kron(resize_rows(width, wide, to.interpolation)[columns], torch.eye(channels))
        self._linear = {
            dtype: (_bands(device, down.to(dtype)), _bands(device, across.to(dtype)))
            for dtype in (torch.float32, torch.bfloat16)
        }
        self._exact = _bands(device, *_parts(down)), _bands(device, *_parts(across))
        self.shape, self.to = shape, to
        noise = torch.randint(256, (2, height, width * channels), generator=torch.Generator().manual_seed(0)).float()
        found = torch.cat([rows for _, rows in self._as_pil(noise.to(device))], dim=1)
        # Pillow takes the vertical pass first for some tall images, and may one day reckon otherwise.
        self._agrees = torch.equal(found.cpu(), self._by_pil(noise))

    def linear(self, x: Tensor, out: Tensor) -> None:
        """Resize without rounding or clamping.

        Args:
            x: (B, H, W C) float32 or bfloat16.
            out: (B, S, S C) of x's dtype, filled.
        """
        down, across = self._linear[x.dtype]
        flat = x.flatten(0, 1)
        # Columns first, while the image is low: one plain product for all images.
        wide = torch.cat([flat[:, band.reads] @ band.parts[0].T for band in across], dim=1).view(*x.shape[:2], -1)
        for band in down:
            torch.bmm(band.parts[0].expand(len(x), -1, -1), wide[:, band.reads], out=out[:, band.writes])

    def exact(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Resize as PIL does, to the last bit: whole numbers, rounded and clamped after each of its two passes.

        Args:
            x: (B, H, W C) float32 of whole numbers from 0 to 255.

        Yields:
            Rows of the result, and what they hold, (B, rows, S C) float32 of such numbers.
        """
        if self._agrees:
            yield from self._as_pil(x)
        else:
            yield slice(None), self._by_pil(x.cpu()).to(x.device)

    def _by_pil(self, x: Tensor) -> Tensor:
        channels, height, width = self.shape
        pixels = x.to(torch.uint8).view(-1, height, width, channels).numpy()
        images = [Image.fromarray(one.squeeze(2) if channels == 1 else one) for one in pixels]
        found = np.stack([pixels_of(fitted(image, self.to)) for image in images])
        return torch.from_numpy(found.reshape(*found.shape[:2], -1)).float()

    def _as_pil(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        down, across = self._exact
        flat = x.flatten(0, 1)
        columns = []
        for band in across:
            high, low = (m.T for m in band.parts)
            here = flat[:, band.reads]
            columns.append(_grey((here @ low).floor_().addmm_(here, high)))
        wide = torch.cat(columns, dim=1).view(*x.shape[:2], -1)
        for band in down:
            high, low = (m.expand(len(x), -1, -1) for m in band.parts)
            here = wide[:, band.reads]
            yield band.writes, _grey(torch.bmm(low, here).floor_().baddbmm_(high, here))


@dataclass(frozen=True)
class _Band:
    """Some neighbouring rows of a resampling matrix, which is zero but near its diagonal."""

    writes: slice
    """Of the result."""
    reads: slice
    """Of what is resized: outside, all weights are zero."""
    parts: tuple[Tensor, ...]
    """(writes, reads); the sum of the parts' products is the result."""


def _bands(device: torch.device, *parts: Tensor) -> list[_Band]:
    found = []
    size = -(-len(parts[0]) // BANDS)
    for begin in range(0, len(parts[0]), size):
        writes = slice(begin, begin + size)
        used = torch.stack(parts)[:, writes].abs().sum(dim=(0, 1)).nonzero()
        reads = slice(int(used[0]), int(used[-1]) + 1)
        found.append(_Band(writes, reads, tuple(part[writes, reads].contiguous().to(device) for part in parts)))
    return found


def _parts(weight: Tensor) -> tuple[Tensor, Tensor]:
    """PIL's whole-number weights w as float32 (h, l / HIGH) with w = HIGH h + l.

    Sums of products with 0 to 255 then stay under 2^24, where float32 holds every whole number.
    """
    whole = (weight * PIL_ONE).round()
    high = (whole / HIGH).round()
    low = whole - HIGH * high
    assert 255 * max(float(m.abs().sum(dim=1).max()) for m in (high, low)) < 1 << 23
    return high.float(), (low / HIGH).float()


def _grey(sum_high: Tensor) -> Tensor:
    """floor(s / PIL_ONE + 1/2), clamped, from floor(s / HIGH): dividing in two steps gives the same floor."""
    return torch.add(0.5, sum_high, alpha=HIGH / PIL_ONE).floor_().clamp_(0, 255)
