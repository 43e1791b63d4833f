"""Rows about the input: mixed images per second, ready for the tower.

Letters in the names give shapes: N images, B images of a batch.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from benchmarks import reference as usual
from benchmarks.measure import Row, row, seconds, unit_rows
from lfm.backbones.device import use_bf16
from lfm.backbones.towers import DEFAULT
from lfm.config.schema import DataConfig, MixupConfig
from lfm.data.artifact import add_pixels, write
from lfm.data.decoding import fitted
from lfm.data.images import Images, open_split
from lfm.data.prefetch import fetched_ahead, mixed_images
from lfm.data.sources.base import TEST, TRAIN, Files, Source
from lfm.method.mixup import PairSampler

TAU, BATCH, BATCHES = 0.05, 32, 9

ImageOf = Callable[[int], Image.Image]


def reference_input(image_of: ImageOf, pairs: Sequence[tuple[int, int, float]]) -> Tensor:
    """Mixed images: each of the two is flipped, resized by PIL, made a tensor, normalised; then they are mixed."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (DEFAULT.mean, DEFAULT.std))
    rng = np.random.default_rng(0)

    def one(i: int) -> Tensor:
        image = ImageOps.mirror(image_of(i)) if rng.random() < 0.5 else image_of(i)
        return (torch.from_numpy(np.array(fitted(image, DEFAULT))).permute(2, 0, 1).float() / 255 - mean) / std

    return torch.stack([lam * one(i) + (1 - lam) * one(j) for i, j, lam in pairs])


def input_row(part: str, images: Images, image_of: ImageOf, goal: float, at_least: float, theirs: Any = None) -> Row:
    """Mixed images per second in the paper's batches of 32; pairs are drawn before, for both.

    Args:
        part: name of the row.
        images: ours.
        image_of: the reference's images.
        goal: ratio.
        at_least: seconds of measurement.
        theirs: the authors' repository and the pixels (N, 32, 32, 3) that their data set is given, if they are timed.
    """
    label_N = images.label_N.cpu()
    sampler = PairSampler(MixupConfig(tau=TAU), label_N, unit_rows(100), alpha=1.0, batch_size=BATCH, seed=0, stage=1)
    batches = [sampler.batch(0, step) for step in range(min(BATCHES, sampler.steps_per_epoch))]
    dtype = torch.bfloat16 if use_bf16("auto", images.device) else torch.float32

    def ours() -> None:
        for batch, pixels in fetched_ahead(images, batches):
            mixed_images(images, batch, True, pixels, dtype)

    pairs = [(i, j, 0.3) for i, j in batches[0].index_B2.tolist()]
    path, *pixels = theirs or (None, None)
    act, source = usual.way("input", path, lambda: reference_input(image_of, pairs), *pixels, pairs)
    reference, count = seconds(act, at_least), sum(len(batch.index_B2) for batch in batches)
    return row(part, len(pairs) / reference, count / seconds(ours, at_least), "mixed images/s", goal, source)


def small_images(n: int, device: torch.device, resize: str = "fast") -> Images:
    """Images of CIFAR's size on their way to a tower of 224 pixels."""
    pixels = torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    held, label_N = pixels.to(device), torch.arange(n) % 100

    def fetch(index_B: Tensor) -> Tensor:
        return held.index_select(0, index_B.to(device)).permute(0, 3, 1, 2)

    return Images(fetch, (3, 32, 32), label_N.to(device), DEFAULT, True, resize)


def small_input_row(resize: str, goal: float, device: torch.device, at_least: float, path: Path | None) -> Row:
    """Images that lie in memory and are resized on the device."""
    images = small_images(10_000, device, resize)
    pixels = images.fetch(torch.arange(10_000)).permute(0, 2, 3, 1).cpu().numpy()
    part = {"fast": "input, CIFAR sizes", "exact": "input, CIFAR sizes, exact resize"}[resize]
    return input_row(part, images, lambda i: Image.fromarray(pixels[i]), goal, at_least, (path, pixels))


def photo(rng: np.random.Generator) -> Image.Image:
    """A picture of ImageNet's usual size: gradients and noise."""
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
    noise = rng.integers(-12, 12, smooth.shape, dtype=np.int16)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


def jpeg_input_row(decode: Literal["once", "each-time"], goal: float, count: int, at_least: float) -> Row:
    """JPEGs of ImageNet's sizes, from a memory map of pixels decoded once, or decoded each time from the table."""
    rng, config = np.random.default_rng(0), DataConfig(name="custom", profile="as-is", decode=decode)
    with TemporaryDirectory() as place:
        raw, table, folder, work = (Path(place, name) for name in ("raw", "table", "data", "work"))
        for made in (raw, table, folder):
            made.mkdir()
        paths = [str(raw / f"{k:04d}.jpg") for k in range(count)]
        for path in paths:
            photo(rng).save(path, quality=90)
        classes = tuple(f"class {k}" for k in range(100))
        split_N = np.array([TRAIN] * (count - 100) + [TEST] * 100, np.int8)
        write(table, Source(Files(paths), np.arange(count) % 100, split_N, classes, "made here"), config, 0, work)
        add_pixels(folder, table, DEFAULT, config, work)
        part = f"input, JPEG at ImageNet sizes, {'decoded once' if decode == 'once' else 'raw'}"
        images = open_split(folder, "train")  # on the CPU: decoding is its work
        return input_row(part, images, lambda i: Image.open(paths[i]).convert("RGB"), goal, at_least)
