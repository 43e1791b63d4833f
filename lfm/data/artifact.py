"""The data set on disk: Arrow files, and arrays for training (over 300 lines: the one format of all splits).

train/, val/, test/           Arrow files (lfm/data/table.py)
train_labels.npy, ...         (N,) int64
train_images.npy, ...         (N, H, W[, 3]) uint8, unless the images are decoded while training
info.json                     classes, counts, how pixels are kept, how they become the tower's input
notes/bad.json                images that were left out, and why
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lfm.backbones.towers import Preprocess
from lfm.config.schema import DataConfig
from lfm.data import depth
from lfm.data.decoding import decode, fitted, pixels_of
from lfm.data.sources.base import SPLITS, TEST, TRAIN, VAL, Index, Source
from lfm.data.sources.image_listing import first_few
from lfm.data.sources.test_split import kept_from_training
from lfm.data.subsets import hold_out, largest, profile, subset
from lfm.data.table import Table, in_order, open_table, threads, write_table
from lfm.errors import InputError, counted
from lfm.progress import Progress, bar, say
from lfm.storage.artifact import MANIFEST, NOTES, link

SMALL = 64
"""Images all of one size, at most this many pixels a side, are kept as they are and resized on the device."""
SHOWN_BAD = 10
CHUNK = 512


def select(source: Source, config: DataConfig, seed: int) -> dict[str, Index]:
    """The images of each split: the long-tailed training subset, the validation and the test images.

    Args:
        source: checked.
        config: profile and validation set.
        seed: of the subset.

    Returns:
        Split -> positions in the source, splits without images too.

    Raises:
        InputError: too few images for the profile, a class that the validation set would empty, or a validation set on
            top of the data's own.
    """
    train_N, val_N, test_N = (np.flatnonzero(source.split_N == split) for split in (TRAIN, VAL, TEST))
    label_N = source.label_N
    if config.val_per_class:
        if len(val_N):
            raise InputError(f"{config.name} has a validation split of its own; set data.val_per_class=0")
        rest, held = hold_out(label_N[train_N], config.val_per_class)
        emptied = np.setdiff1d(label_N[train_N], label_N[train_N[rest]])
        if len(emptied):
            k, count_C = int(emptied[0]), np.bincount(label_N[train_N])
            raise InputError(
                f"class {source.classes[k]!r} has {counted(int(count_C[k]), 'training image')}, and data.val_per_class="
                f"{config.val_per_class} would take them all; set it to {count_C[count_C > 0].min() - 1} or less"
            )
        train_N, val_N = train_N[rest], train_N[held]
    if config.profile != "as-is":
        label_M = label_N[train_N]
        most = config.max_per_class or largest(
            np.bincount(label_M, minlength=len(source.classes)), config.profile, config.imbalance
        )
        count_C = profile(most, config.imbalance, len(source.classes), config.profile)
        train_N = train_N[subset(label_M, count_C, seed)]
    return {"train": train_N, "val": val_N, "test": test_N}


def write(folder: Path, source: Source, config: DataConfig, seed: int, work: Path) -> None:
    """Read and check the chosen images, and write them as Arrow files.

    Args:
        folder: empty; filled.
        source: the whole data set; checked here.
        config: profile and validation set.
        seed: of the subset.
        work: keeps the finished shards of a killed build.

    Raises:
        InputError: bad labels or names, too few images for the profile, a class without readable images.
    """
    source.check()
    rows = select(source, config, seed)
    bad = write_table(folder, work, source.images, source.label_N, rows, source.classes, config.max_megapixels)
    counts = []
    for split in SPLITS:
        label_N = open_table(folder, split).column("label").astype(np.int64)
        np.save(folder / f"{split}_labels.npy", label_N)
        counts.append(np.bincount(label_N, minlength=len(source.classes)))
    info = {
        "name": config.name,
        "classes": list(source.classes),
        "equal_names": source.equal_names,
        "counts": counts[0].tolist(),
        "imbalance": float(counts[0].max() / max(counts[0].min(), 1)),
        "subset_seed": seed,
        "depth": _depth(folder, config),
        "test_share": source.test_share if _unseen(folder, source.test_share) else 0.0,
    }
    (folder / "info.json").write_text(json.dumps(info, indent=1))
    (folder / NOTES).mkdir()
    (folder / NOTES / "bad.json").write_text(json.dumps(bad))


def _depth(folder: Path, config: DataConfig) -> dict[str, dict[str, Any]]:
    """The levels that become black and white, from the deep images of all splits (`lfm.data.depth.choose`)."""
    seen = {split: open_table(folder, split).column("deep").tolist() for split in SPLITS}
    training = [split == "train" for split, of in seen.items() for _ in of]
    rule = depth.choose(config.depth, [text for of in seen.values() for text in of], training)
    for line in depth.said(rule):
        say(line)
    _say_doubtful_levels({split: open_table(folder, split) for split in SPLITS}, depth.ranges_in({"depth": rule}))
    return rule


def _say_doubtful_levels(tables: Mapping[str, Table], ranges: depth.Ranges) -> None:
    """Name the images with levels that are no numbers, or far beyond black and white: they look like any other."""
    odd: list[str] = []
    far: list[str] = []
    for table in tables.values():
        odd += [table.name(row) for row, words in enumerate(table.column("odd")) if "no-number" in words]
        deep = [(row, text) for row, text in enumerate(table.column("deep").tolist()) if text]
        hit_M: Sequence[bool] = depth.grey_of([text for _, text in deep], ranges)["far off"].tolist() if deep else []
        far += [table.name(row) for (row, _), hit in zip(deep, hit_M, strict=True) if hit]
    for names, what in ((odd, "no numbers (NaN, infinity)"), (far, "far outside that range, as 1e30 or -9999 are")):
        if names:
            say(f"warning: {counted(len(names), 'image')} with levels that are {what}: {first_few(names)}")


def _unseen(folder: Path, share: float) -> bool:
    """Whether no training image is one of those that never train, by a threshold of hashes (`test_split`).

    It may be one where two classes have copies of it, or where a class would have no other.
    """
    return not any(
        kept_from_training(bytes.fromhex(sha), share) for sha in open_table(folder, "train").column("sha256").tolist()
    )


def judge(folder: Path, config: DataConfig) -> None:
    """Whether the images that were left out are too many to go on, or the last ones of a class.

    The artifact is the same whatever the answer, so that the data report can show them, and `skip` needs no new build.

    Args:
        folder: a data set artifact.
        config: `on_bad_image` and `max_bad`.

    Raises:
        InputError: they are; the first ones are named.
    """
    bad = json.loads((folder / NOTES / "bad.json").read_text())
    if not bad:
        return _judge_classes(folder, config)
    total = len(bad) + sum(len(open_table(folder, split)) for split in SPLITS)
    some = f"{len(bad):,} of {counted(total, 'image')} cannot be used"
    shown = "; ".join(bad[:SHOWN_BAD]) + (f"; and {len(bad) - SHOWN_BAD} more" if len(bad) > SHOWN_BAD else "")
    if config.on_bad_image == "stop":
        raise InputError(f"{some}: {shown}. Mend or remove them, or set data.on_bad_image=skip")
    if len(bad) > config.max_bad * total:
        raise InputError(
            f"{some}, more than data.max_bad = {config.max_bad:g} allows: "
            f"{shown}. Mend or remove them, or raise data.max_bad"
        )
    _judge_classes(folder, config)
    left = ", ".join(f"{len(open_table(folder, split)):,} {split}" for split in SPLITS)
    say(f"{some} and {'is' if len(bad) == 1 else 'are'} left out: {shown}. {left} images are left")


def _judge_classes(folder: Path, config: DataConfig) -> None:
    """Raises InputError where a class has no image that can be used, in training or test."""
    classes = read_info(folder)["classes"]
    for split in ("train", "test"):
        count_C = np.bincount(open_table(folder, split).column("label").astype(np.int64), minlength=len(classes))
        if not count_C.all() and not (split == "test" and config.without_test == "keep"):
            name = classes[int(count_C.argmin())]
            bad = json.loads((folder / NOTES / "bad.json").read_text())
            raise InputError(
                f"class {name!r} has no readable image left in {split}; of what cannot be used ({first_few(bad)}) "
                f"repair what is of this class, add images of it to {split}, or take its folder or rows away"
            )


def read_info(folder: Path) -> dict[str, Any]:
    """Classes, training counts and preprocessing of a data set artifact."""
    try:
        info: dict[str, Any] = json.loads((folder / "info.json").read_text())
    except OSError as error:
        raise InputError(f"{folder} is not a data set artifact: no info.json; run the prepare step") from error
    return info


def add_pixels(folder: Path, base: Path, to: Preprocess, config: DataConfig, work: Path) -> None:
    """The Arrow artifact together with its pixels, ready to train on.

    Args:
        folder: empty; filled, the Arrow files being linked.
        base: what `write` made.
        to: the tower's preprocessing; without a mean, the training images' own is taken.
        config: whether to decode once.
        work: keeps the decoded pixels of a killed build.

    Raises:
        InputError: images of many sizes for a tower that takes them as they are.
    """
    for path in base.rglob("*"):
        if path.is_file() and path.name not in (MANIFEST, "info.json"):
            (folder / path.relative_to(base)).parent.mkdir(exist_ok=True)
            link(path, folder / path.relative_to(base))
    tables = {split: open_table(base, split) for split in SPLITS}
    sizes = {
        size
        for table in tables.values()
        for size in zip(table.column("width").tolist(), table.column("height").tolist(), strict=True)
    }
    modes = {mode for table in tables.values() for mode in table.column("mode")}
    rotated = any("rotated" in odd for table in tables.values() for odd in table.column("odd"))
    same = len(sizes) == 1 and not rotated
    if not to.size and not same:
        raise InputError(
            f"the images have {len(sizes)} sizes, from {min(sizes)} to {max(sizes)} (width, height), and the tower "
            f"takes them as they are; set model.image_size, as in --set model.image_size=64"
        )
    ranges = depth.ranges_in(read_info(base))
    kept = _how(to, config, next(iter(sizes)) if same else None, sum(map(len, tables.values())))
    grey = not to.mean and modes == {"L"}
    if kept != "encoded":
        shape = next(iter(sizes))[::-1] if kept == "native" else (to.size, to.size)
        fit = to if kept == "fitted" else dataclasses.replace(to, size=0)
        with bar(sum(map(len, tables.values())), "decode", "images") as progress:
            for split, table in tables.items():
                target, whole = folder / f"{split}_images.npy", (len(table), *shape, *(() if grey else (3,)))
                _decode_all(target, work, table, whole, fit, config, ranges, progress)
    if not to.mean:
        mean, std = _statistics(folder / "train_images.npy")
        to = dataclasses.replace(to, mean=(mean,), std=(std,))
    info = read_info(base) | {
        "pixels": kept,
        "channels": 1 if grey else 3,
        "max_megapixels": config.max_megapixels,
        "preprocess": dataclasses.asdict(to),
    }
    (folder / "info.json").write_text(json.dumps(info, indent=1))


def _how(to: Preprocess, config: DataConfig, size: tuple[int, int] | None, images: int) -> str:
    """native: small images as they are; fitted: at the tower's size; encoded: decoded while training."""
    if size and (not to.size or max(size) <= SMALL):
        return "native"
    gigabytes = images * to.size * to.size * 3 / 1e9
    if config.decode == "each-time" or (config.decode == "auto" and gigabytes > config.decode_gb):
        if not to.mean:
            raise InputError("a tower from scratch takes mean and deviation from the pixels; set data.decode=once")
        return "encoded"
    return "fitted"


def _decode_all(
    target: Path,
    work: Path,
    table: Table,
    whole: tuple[int, ...],
    to: Preprocess,
    config: DataConfig,
    ranges: depth.Ranges,
    progress: Progress,
) -> None:
    """All images of a split as one array. What an earlier, killed build decoded is kept."""
    work.mkdir(parents=True, exist_ok=True)
    path, done_path = work / target.name, work / f"{target.name}.done"
    done = set(map(int, done_path.read_text().split())) if done_path.is_file() and path.is_file() else set()
    pixels = np.lib.format.open_memmap(path, "r+" if done else "w+", np.uint8, None if done else whole)
    with path.open("r+b") as file:  # writing to a map of a full disk would end the process without a word
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    chunks = range(0, len(table), CHUNK)

    def run(start: int) -> int:
        rows = range(start, min(start + CHUNK, len(table)))
        if start not in done:
            for i in rows:
                grey = len(whole) == 3
                image = decode(table.encoded(i), table.name(i), config.max_megapixels, grey, ranges)
                pixels[i] = pixels_of(fitted(image, to))
        return len(rows)

    with ThreadPoolExecutor(threads()) as pool, done_path.open("a") as done_file:
        for start, count in zip(chunks, in_order(pool, run, chunks), strict=True):
            if start not in done:
                pixels.flush()
                done_file.write(f"{start}\n")
                done_file.flush()
            progress.update(count)
    link(path, target)


def _statistics(path: Path) -> tuple[float, float]:
    """Mean and standard deviation of all pixels in [0, 1], exact, from a histogram."""
    pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    count = np.zeros(256, np.int64)
    for start in range(0, len(pixels), CHUNK):
        count += np.bincount(pixels[start : start + CHUNK].ravel(), minlength=256)
    value = np.arange(256) / 255
    mean = (count * value).sum() / count.sum()
    return float(mean), float(np.sqrt((count * (value - mean) ** 2).sum() / count.sum()))
