"""Opposite classes as partners or not: Fashion-MNIST's shoes turned left and right, trousers and dresses upside down.

    python -m benchmarks.opposites --seeds 3 --out docs/opposites.md

Opposites are nearest in text and, here, differ in nothing but a turn; the frequent one of a pair is the rare one's
likeliest partner. Of each pair one class has many images and its opposite few. Flips are off: they would change labels.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.science import paired, spread, train_and_score
from lfm.backbones.text_encoders import embed
from lfm.config.presets import load
from lfm.config.schema import DataConfig, TextConfig
from lfm.data.sources.fashion_mnist import CLASSES, SHA256, load_fashion_mnist, read_idx
from lfm.report.tables import COLUMNS
from lfm.revision import commit
from lfm.storage.artifact import home

PAIRS = (
    ("Sneaker", "sneaker pointing left", "sneaker pointing right"),
    ("Sandal", "sandal pointing left", "sandal pointing right"),
    ("Ankle boot", "ankle boot pointing left", "ankle boot pointing right"),
    ("Trouser", "trousers upright", "trousers upside down"),
    ("Dress", "dress upright", "dress upside down"),
)
"""Fashion-MNIST's class, its images as they are, and turned."""
HEAD, TAIL, TEST = (1000, 600, 360, 216, 130), (10, 16, 27, 46, 77), 200
"""Training images of the classes as they are and of the turned ones; test images of each."""
BASE = "LFM + CE, any partner"
ARMS: dict[str, dict[str, Any]] = {
    BASE: {},
    "opposites excluded (mixup.exclude)": {"mixup.exclude": [[a, b] for _, a, b in PAIRS]},
    "no partner above .9 (mixup.max_similarity)": {"mixup.max_similarity": 0.9},
    "uniform partners": {"mixup.partner": "uniform"},
    "CE": {"mixup.name": "none"},
}


ABOUT = """# Opposites as partners or not

`python -m benchmarks.opposites --seeds {seeds} --out docs/opposites.md` wrote this on {date}.
Fashion-MNIST's sneakers, sandals and ankle boots, pointing left or right, its trousers and dresses, upright or upside
down: accuracy in percent, mean and standard deviation over the seeds, and the paired difference to the first row with
its 95 % interval.

- data: {train:,} training images, {most:,} to {fewest} a class; {test:,} test images
- text: MiniLM, whose cosines of the five pairs are {far:.2f} to {near:.2f}
- method: conv4 from scratch, {epochs} + {head_epochs} epochs, tau .25, alpha .5, no flips
- seeds 0 to {last}, {threads} threads, commit {commit}
"""


def write(folder: Path) -> None:
    """The images as FOLDER/SPLIT/CLASS/*.png."""
    load_fashion_mnist(DataConfig(name="fashion-mnist"))  # fetched, if it is not there
    a, b, c, d = (read_idx(home() / "downloads" / "fashion-mnist" / f"{name}.gz") for name in SHA256)
    equal = (TEST,) * len(PAIRS)
    for split, images_N, label_N, sizes in (("train", a, b, (HEAD, TAIL)), ("test", c, d, (equal, equal))):
        for k, (of, *names) in enumerate(PAIRS):
            rows = np.flatnonzero(label_N == CLASSES.index(of))
            for turned, (name, size) in enumerate(zip(names, (sizes[0][k], sizes[1][k]), strict=True)):
                place = folder / split / name
                place.mkdir(parents=True)
                for row in rows[turned * sizes[0][k] :][:size]:
                    Image.fromarray(_turned(images_N[row], k < 3) if turned else images_N[row]).save(
                        place / f"{row}.png", compress_level=1
                    )


def _turned(image: NDArray[np.uint8], sideways: bool) -> NDArray[np.uint8]:
    return image[:, ::-1] if sideways else image[::-1]


def main(argv: Sequence[str] | None = None) -> None:
    """Train every arm with every seed, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="paired seeds, from 0")
    parser.add_argument("--epochs", type=int, default=40, help="of stage 1; a quarter of it in stage 2")
    parser.add_argument("--out", type=Path, help="Markdown file for the table")
    options = parser.parse_args(argv)
    scores: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as place:
        write(Path(place))
        common = {
            "data.source": place, "model.image_size": 28, "train.flip": False, "train.validate_every": 0,
            "train.checkpoint_minutes": 1e9, "stage1.alpha": 0.5, "stage2.alpha": 0.5,
            "stage1.epochs": options.epochs, "stage2.epochs": options.epochs // 4,
        }  # fmt: skip
        for seed in range(options.seeds):
            for arm, changes in ARMS.items():
                print(f"seed {seed}: {arm}", flush=True)
                scores[arm].append(train_and_score(load("custom-scratch", {**common, **changes, "seed": seed})))
    text = page(scores, options.epochs)
    print(text)
    if options.out:
        options.out.write_text(text)


def page(scores: dict[str, list[dict[str, Any]]], epochs: int) -> str:
    """The table in Markdown."""
    names = [name for _, *both in PAIRS for name in both]
    unit_CD = embed(names, TextConfig(encoder="minilm"), None)
    cosines = (unit_CD[::2] * unit_CD[1::2]).sum(dim=1)
    about = ABOUT.format(
        seeds=len(scores[BASE]), last=len(scores[BASE]) - 1, date=time.strftime("%Y-%m-%d"), train=sum(HEAD + TAIL),
        most=HEAD[0], fewest=TAIL[0], test=2 * len(PAIRS) * TEST, far=float(cosines.min()), near=float(cosines.max()),
        epochs=epochs, head_epochs=epochs // 4, threads=torch.get_num_threads(), commit=commit(),
    )  # fmt: skip
    lines = [
        about,
        "| | " + " | ".join(COLUMNS) + " | All against the first | Few against the first |",
        "|---" * (len(COLUMNS) + 3) + "|",
    ]
    for arm, found in scores.items():
        cells = [spread([one[column] for one in found]) for column in COLUMNS]
        for column in ("all", "few"):
            mean, half = paired([one[column] for one in found], [one[column] for one in scores[BASE]])
            cells.append("" if arm == BASE else f"{mean:+.1f} ± {half:.1f}")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
