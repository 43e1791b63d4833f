"""Resizing images of CIFAR's size to a tower's 224 pixels on the CPU: ours, PyTorch's antialiased kernels and PIL.

    python -m benchmarks.resizing

Training: pairs are mixed at 32 pixels and the mixed image is resized once, by `Resampling.linear` (ours) or
`F.interpolate` in float32, normalised before; or both images are resized in 8 bits, as PIL and `F.interpolate` do for
uint8, then mixed and normalised. Evaluation: `Resampling.exact` (ours), `F.interpolate` in 8 bits, PIL. All are timed
in turns, and the figure is the best of several rounds, as other processes only ever slow a round down. With one thread
CPU time is taken, which they lengthen little; with more, wall time: run that on an idle machine. "Off PIL by" is the
largest difference to PIL, in grey levels, and the fraction of values that differ by more than one half.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lfm.backbones.towers import DEFAULT
from lfm.data.decoding import fitted
from lfm.data.images import PIECE
from lfm.data.resize import Resampling

TO = replace(DEFAULT, size=224, interpolation="bicubic", resize_mode="shortest")
SIDE, LAM = 32, 0.3

Way = Callable[[], Tensor]


def pixels(images: int) -> Tensor:
    """(images, 3, 32, 32) uint8 noise, the channels innermost in memory, as a split holds them."""
    rng = torch.Generator().manual_seed(0)
    held = torch.randint(0, 256, (images, SIDE, SIDE, 3), dtype=torch.uint8, generator=rng)
    return held.permute(0, 3, 1, 2)


def by_pil(x: Tensor) -> Tensor:
    """Each image by PIL, (B, 3, 224, 224) uint8."""
    images = [Image.fromarray(image) for image in x.permute(0, 2, 3, 1).contiguous().numpy()]
    return torch.from_numpy(np.stack([np.asarray(fitted(image, TO)) for image in images])).permute(0, 3, 1, 2)


def by_torch(x: Tensor) -> Tensor:
    """PyTorch's antialiased kernel: rounded to 8 bits for uint8, exact for floats."""
    return F.interpolate(x, (TO.size, TO.size), mode="bicubic", antialias=True)


def ours(resampling: Resampling, x: Tensor, exact: bool) -> Tensor:
    """Ours, a few images at a time, (B, 3, 224, 224) of x's dtype."""
    rows, out = x.permute(0, 2, 3, 1).flatten(2), torch.empty(len(x), TO.size, 3 * TO.size, dtype=x.dtype)
    for begin in range(0, len(x), PIECE):
        here, to = rows[begin : begin + PIECE], out[begin : begin + PIECE]
        if exact:
            for band, values in resampling.exact(here):
                to[:, band] = values
        else:
            resampling.linear(here, to)
    return out.view(len(x), TO.size, TO.size, 3).permute(0, 3, 1, 2)


def mixed(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """LAM a + (1 - LAM) b, normalised as a tower wants it."""
    mean, std = (torch.tensor(v, dtype=dtype)[:, None, None] for v in (TO.mean, TO.std))
    return torch.lerp(b.to(dtype), a.to(dtype), LAM).mul_(1 / (255 * std)).sub_(mean / std)


def ways(batch: int) -> dict[str, dict[str, Way]]:
    """What is timed: for each use, name -> one call."""
    resampling, x, y = (
        Resampling((3, SIDE, SIDE), TO, torch.device("cpu")),
        pixels(2 * batch)[:batch],
        pixels(2 * batch)[batch:],
    )
    half, full = torch.bfloat16, torch.float32
    training: dict[str, Way] = {
        "ours, mixed first, bf16": lambda: ours(resampling, mixed(x, y, full).to(half), False),
        "ours, mixed first, fp32": lambda: ours(resampling, mixed(x, y, full), False),
        "F.interpolate, mixed first, fp32": lambda: by_torch(mixed(x, y, full)),
        "F.interpolate in 8 bits, mixed after, bf16": lambda: mixed(by_torch(x), by_torch(y), half),
        "F.interpolate in 8 bits, mixed after, fp32": lambda: mixed(by_torch(x), by_torch(y), full),
        "PIL, mixed after, fp32": lambda: mixed(by_pil(x), by_pil(y), full),
    }
    evaluation: dict[str, Way] = {
        "ours, exact": lambda: ours(resampling, x.float(), True),
        "F.interpolate in 8 bits": lambda: by_torch(x).float(),
        "PIL": lambda: by_pil(x).float(),
    }
    return {"training": training, "evaluation": evaluation}


def images_per_second(calls: dict[str, Way], batch: int, rounds: int) -> dict[str, float]:
    """The best of some rounds, in each of which every call is timed once."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            began = clock()
            call()
            best[name] = min(best[name], clock() - began)
    return {name: batch / took for name, took in best.items()}


def off_pil(images: int = 64) -> dict[str, tuple[float, float]]:
    """Largest difference to PIL in grey levels, and the percentage of values that differ."""
    x = pixels(images)
    resampling, expected = Resampling((3, SIDE, SIDE), TO, torch.device("cpu")), by_pil(x).float()
    found = {
        "ours, exact": ours(resampling, x.float(), True),
        "ours, fp32": ours(resampling, x.float(), False),
        "ours, bf16": ours(resampling, x.bfloat16(), False).float(),
        "F.interpolate in 8 bits": by_torch(x).float(),
        "F.interpolate, fp32": by_torch(x.float()),
    }
    differences = {name: (values - expected).abs() for name, values in found.items()}
    return {name: (float(d.max()), 100 * float((d > 0.5).float().mean())) for name, d in differences.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(argv)
    print(f"PyTorch {torch.__version__}, images/s, 32 -> {TO.size} pixels\n")
    for use in ("training", "evaluation"):
        columns: dict[str, dict[str, float]] = {}
        for threads in options.threads:
            torch.set_num_threads(threads)
            for batch in options.batches:
                column = f"batch {batch}, {threads} thread{'s' * (threads > 1)}"
                columns[column] = images_per_second(ways(batch)[use], batch, options.rounds)
        names = next(iter(columns.values()))
        print(f"| {use} | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
        for name in names:
            print(f"| {name} | {' | '.join(f'{of[name]:,.0f}' for of in columns.values())} |")
        print()
    print("| off PIL by | largest, grey levels | values off by more than 1/2, % |\n|---|---|---|")
    for name, (largest, percent) in off_pil().items():
        print(f"| {name} | {largest:.3g} | {percent:.3g} |")


if __name__ == "__main__":
    main()
