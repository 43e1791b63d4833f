"""Building a data set artifact from a tree of JPEGs, against torchvision's ImageFolder: the table of docs/build.md.

    .venv/bin/python benchmarks/build.py

Writes the tree, builds its Arrow files and its pixels at 224, and reads the same tree with ImageFolder, once bare
(decode alone) and once with CLIP's resize and crop. Memory is the process's own, without files mapped into it.
"""

import argparse
import io
import os
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from lfm.backbones.towers import DEFAULT
from lfm.config.schema import DataConfig
from lfm.data.artifact import add_pixels, write
from lfm.data.sources.custom import load_custom
from lfm.data.table import threads

DISTINCT = 500
CLASSES = 100


def write_tree(root: Path, images: int, width: int, height: int) -> int:
    """JPEGs of photo-like content, each file different, a folder a class; bytes in all."""
    rng = np.random.default_rng(0)
    base = []
    for _ in range(min(DISTINCT, images)):
        coarse = Image.fromarray(rng.integers(0, 256, (height // 24, width // 24, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        pixels = pixels + rng.integers(-10, 10, pixels.shape, dtype=np.int16)
        out = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "jpeg", quality=85)
        base.append(out.getvalue())
    total = 0
    for split in ("train", "test"):
        for k in range(CLASSES):
            (root / split / f"class_{k:03d}").mkdir(parents=True)
    for i in range(images):
        data = base[i % len(base)]
        comment = f"image {i}".encode()  # a JPEG comment segment: the bytes differ, the pixels are those of the base
        data = data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[2:]
        split = "test" if i < 2 * CLASSES else "train"
        (root / split / f"class_{i % CLASSES:03d}" / f"{i:07d}.jpg").write_bytes(data)
        total += len(data)
    return total


def own_memory() -> float:
    """Megabytes of this process's own memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise OSError("no RssAnon in /proc/self/status: this benchmark needs Linux")


@contextmanager
def watched() -> Iterator[list[float]]:
    """Own memory twenty times a second."""
    seen, stop = [own_memory()], threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            seen.append(own_memory())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def timed(action: Callable[[], object]) -> float:
    """Seconds it takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def image_folder(root: Path, transform: Callable[[Image.Image], object], most: int) -> float:
    """Images per second of ImageFolder in a DataLoader, with as many workers as cores."""
    folder = ImageFolder(str(root), transform=transform)
    chosen = torch.utils.data.Subset(folder, range(0, len(folder), max(1, len(folder) // most)))
    workers = len(os.sched_getaffinity(0))
    loader = torch.utils.data.DataLoader(chosen, batch_size=64, num_workers=workers, collate_fn=len)
    return len(chosen) / timed(lambda: sum(loader))


def main(argv: Sequence[str] | None = None) -> None:
    """Write the tree, measure, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--reference", type=int, default=5000, help="images that ImageFolder reads")
    parser.add_argument("--folder", type=Path, default=None, help="where there is room; default: a temporary one")
    parser.add_argument("--out", type=Path, default=Path("docs/build.md"))
    options = parser.parse_args(argv)
    root = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        size = write_tree(root / "tree", options.images, options.width, options.height)
        config = DataConfig(name="custom", profile="as-is", source=str(root / "tree"))
        (root / "table").mkdir()
        (root / "data").mkdir()
        with watched() as memory:
            seconds = timed(lambda: write(root / "table", load_custom(config), config, 0, root / "work"))
        with watched() as pixel_memory:
            decoding = timed(lambda: add_pixels(root / "data", root / "table", DEFAULT, config, root / "work"))
        bare = image_folder(root / "tree" / "train", lambda image: image, options.reference)
        fit = Compose([Resize(224, InterpolationMode.BICUBIC), CenterCrop(224)])
        fitted = image_folder(root / "tree" / "train", fit, options.reference)
    finally:
        shutil.rmtree(root)
    rows = [
        ("check every image and write Arrow files", options.images / seconds, "decode", bare, memory),
        ("decode, resize and keep pixels at 224", options.images / decoding, "decode and resize", fitted, pixel_memory),
    ]
    lines = [
        "# Building a data set from JPEGs",
        "",
        f"Printed by `python benchmarks/build.py --images {options.images}`: {options.images:,} JPEGs of "
        f"{options.width} x {options.height} pixels, {size / 1e9:.1f} GB; ImageFolder on {options.reference:,} of them "
        f"in a DataLoader with a worker a core; {platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
        f"{threads()} of our threads.",
        "",
        "| step | images/s | ImageFolder does | images/s | ratio | own memory at 10 % | at most after |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, ours, what, theirs, seen in rows:
        tenth = len(seen) // 10
        early, late = max(seen[: tenth + 1]), max(seen[tenth:])
        cells = [
            name,
            f"{ours:,.0f}",
            what,
            f"{theirs:,.0f}",
            f"{ours / theirs:.2f}",
            f"{early:,.0f} MB",
            f"{late:,.0f} MB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    table = "\n".join(lines) + "\n"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(table)
    print(table)


if __name__ == "__main__":
    main()
