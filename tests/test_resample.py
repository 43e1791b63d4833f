"""Resizing as products with matrices, beside PIL itself and torch's own antialiased kernel."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F  # noqa: N812

from lfm.backbones.towers import Preprocess
from lfm.data.decoding import fitted
from lfm.data.resize import HIGH, PIL_ONE, Resampling, _parts, resize_rows

CPU = torch.device("cpu")
TO = Preprocess(96, (), (), "bicubic", "shortest")


def hard(height: int, width: int, channels: int = 3) -> NDArray[np.uint8]:
    """Images that overshoot and round badly: noise, checkerboards, edges, all black, all white, all 127."""
    rng = np.random.default_rng(height * width)
    noise = rng.integers(0, 256, (8, height, width, channels))
    binary = 255 * rng.integers(0, 2, (8, height, width, channels))
    board = 255 * ((np.arange(height)[:, None] + np.arange(width)) % 2)[None, :, :, None].repeat(channels, 3)
    edge = np.where(np.arange(width) < width // 2, 0, 255)[None, None, :, None] + 0 * board
    flat = np.stack([np.full((height, width, channels), v) for v in (0, 127, 255)])
    return np.concatenate([noise, binary, board, edge, flat]).astype(np.uint8)


def rows_of(pixels: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(pixels).flatten(2).float()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize(
    ("size", "to"), [((32, 32), 224), ((28, 64), 96), ((64, 48), 96), ((64, 64), 30), ((64, 40), 17), ((9, 8), 10)]
)
def test_exact_is_pil_to_the_last_bit(size: tuple[int, int], to: int, mode: str, interpolation: str) -> None:
    way = replace(TO, size=to, resize_mode=mode, interpolation=interpolation)
    pixels = hard(*size)
    expected = np.stack([np.asarray(fitted(Image.fromarray(image), way)) for image in pixels])
    found = torch.full((len(pixels), to, 3 * to), -1.0)
    for rows, values in Resampling((3, *size), way, CPU).exact(rows_of(pixels)):
        found[:, rows] = values
    assert np.array_equal(found.view(-1, to, to, 3).numpy(), expected)


def test_shapes_for_which_pil_takes_the_vertical_pass_first_are_left_to_pil() -> None:
    way = replace(TO, size=17, resize_mode="squash")
    assert not Resampling((3, 64, 40), way, CPU)._agrees, "or Pillow has changed, and this can go"
    assert Resampling((3, 32, 32), replace(TO, size=224), CPU)._agrees, "all squares have the quick way"
    pixels = hard(64, 40, 1)
    expected = np.stack([np.asarray(fitted(Image.fromarray(image[..., 0]), way)) for image in pixels])
    ((rows, found),) = Resampling((1, 64, 40), way, CPU).exact(rows_of(pixels))
    assert rows == slice(None) and np.array_equal(found.numpy(), expected)


def test_exact_of_grey_images() -> None:
    pixels = hard(28, 28, 1)
    expected = np.stack([np.asarray(fitted(Image.fromarray(image[..., 0]), TO)) for image in pixels])
    found = torch.cat([values for _, values in Resampling((1, 28, 28), TO, CPU).exact(rows_of(pixels))], dim=1)
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize(("size", "to"), [((32, 32), 224), ((64, 64), 30), ((20, 20), 50)])
def test_linear_is_torchs_antialiased_bicubic_kernel(size: tuple[int, int], to: int) -> None:
    x = torch.randn(3, *size, 3, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(x.permute(0, 3, 1, 2).double(), (to, to), mode="bicubic", antialias=True)
    resampling = Resampling((3, *size), replace(TO, size=to), CPU)
    for dtype, error in ((torch.float32, 1e-5), (torch.bfloat16, 0.04)):
        out = torch.empty(3, to, 3 * to, dtype=dtype)
        resampling.linear(x.flatten(2).to(dtype), out)
        found = out.view(3, to, to, 3).permute(0, 3, 1, 2)
        assert torch.allclose(found.double(), expected, atol=error)


@pytest.mark.parametrize(("length", "to"), [(32, 224), (64, 17), (8, 512)])
def test_the_parts_of_a_weight_are_exact_and_their_sums_fit_into_float32(length: int, to: int) -> None:
    weight = resize_rows(length, to, "bicubic")
    high, low = _parts(weight)
    assert torch.equal(HIGH * high.double() + HIGH * low.double(), (weight * PIL_ONE).round())
    for part in (high, low * HIGH):
        assert torch.equal(part, part.round())
        assert 255 * part.abs().sum(dim=1).max() + PIL_ONE / HIGH < 2**24
