"""Images of your own: a folder, a split list, a manifest or a saved Hugging Face data set, on disk or at s3://."""

import hashlib
import json
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lfm import storage
from lfm.config import DataConfig, InputError
from lfm.data.arrow import is_arrow, read_arrow
from lfm.data.heldout import choose_test, digests
from lfm.data.lists import named
from lfm.data.manifest import MANIFESTS, SPLIT_NAMES, Rows, read_file, read_lists, read_manifest, unreadable
from lfm.data.source import SPLITS, TEST, TRAIN, Encoded, Files, Index, Source
from lfm.progress import say
from lfm.store import build_once

IMAGES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))
KINDS = (
    "an image folder ROOT/CLASS/*.jpg or ROOT/{train,val,test}/CLASS/*.jpg (data.source=/data/birds), "
    "a prefix in S3 with the same layout (data.source=s3://bucket/birds), "
    "a split list of lines 'PATH LABEL' (data.source=/data/birds/train.txt, beside it val.txt and test.txt), "
    "a manifest with the columns path, label and maybe split (data.source=/data/birds.csv, .tsv, .parquet or .jsonl, "
    "or at s3://), or a folder that Hugging Face datasets saved (data.source=/data/birds-arrow)"
)
WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
READERS = 16
COARSE = 20
"""With fewer test images a class, one image moves its accuracy by five points or more."""


@dataclass
class Found:
    """Images with the label they were given, before classes are numbered."""

    path: list[str]
    name: list[str]
    """Path from the root, or as the list has it."""
    stamp: list[str]
    """Size and time, or ETag: changes with the bytes."""
    label: list[str]
    split: list[int]
    where: Callable[[int], str]
    """What an error calls image i."""
    spaces: bool
    """Whether underscores in a label stand for spaces."""
    numbers: bool = False
    """Whether labels are class numbers rather than names."""
    raw: list[bytes] = field(default_factory=list)


def load_custom(config: DataConfig) -> Source:
    """Images of an image folder, split list, manifest or saved data set (`KINDS`); without a test split one is made.

    Args:
        config: `source`, `images`, `class_names` and `test_per_class` are read.

    Raises:
        InputError: no such source, or an error in it: the file, row, rule and fix are named.
    """
    if not config.source:
        raise InputError(f"data.source is empty; set it to {KINDS}")
    source = _absolute(config.source)
    suffix = posixpath.splitext(source)[1].lower()
    remote = storage.is_remote(source)
    images: Encoded
    if not remote and is_arrow(Path(source)):
        images, label_N, split_N, classes, checksum = read_arrow(Path(source))
        classes = named(config, classes)
    else:
        found = _find(config, source, suffix, remote)
        label_N, classes = _number_classes(config, found)
        images, split_N = Files(found.path), np.array(found.split, np.int8)
        checksum = _checksum(found, label_N, split_N, classes)
    if not (split_N == TRAIN).any():
        raise InputError(f"{source} has no training images; give some the split train")
    if not (split_N == TEST).any():
        split_N = choose_test(_kept_digests(images, checksum), label_N, split_N, classes, config.test_per_class)
        made = int((split_N == TEST).sum()) // len(classes)
        say(f"{source} has no test split: of each class, images chosen by their content are one now ({made} a class)")
        if made < COARSE:
            say(f"warning: {made} test images a class make coarse scores; bring a test split or more images")
    count = ", ".join(f"{(split_N == k).sum():,} {name}" for k, name in enumerate(SPLITS))
    say(f"{len(images):,} images of {len(classes):,} classes from {source}: {count}")
    result = Source(images, label_N, split_N, classes, checksum)
    result.check()
    return result


def _kept_digests(images: Encoded, checksum: str) -> list[bytes]:
    """sha256 of each image, read once for all runs on the same files."""

    def build(aside: Path) -> None:
        np.save(aside / "digests.npy", np.frombuffer(b"".join(digests(images)), np.uint8).reshape(-1, 32))

    folder, _ = build_once("digests", {"source": checksum}, build)
    return [row.tobytes() for row in np.load(folder / "digests.npy", allow_pickle=False)]


def _find(config: DataConfig, source: str, suffix: str, remote: bool) -> Found:
    if (remote and suffix not in (".txt", *MANIFESTS)) or Path(source).is_dir():
        return _from_folder(source)
    if suffix == ".txt":
        return _from_tables(config, source, read_lists(source))
    if suffix in MANIFESTS:
        return _from_tables(config, source, [read_manifest(source, suffix)])
    if Path(source).exists():
        raise InputError(f"{source} is of no known kind; data.source must be {KINDS}")
    raise InputError(f"{source} does not exist; correct data.source: it must be {KINDS}")


def _checksum(found: Found, label_N: Index, split_N: NDArray[np.int8], classes: tuple[str, ...]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for text in (found.name, found.stamp, classes):
        digest.update("\0".join(text).encode(errors="surrogateescape") + b"\1")
    for part in (label_N.tobytes(), split_N.tobytes(), *found.raw):
        digest.update(part + b"\1")
    return digest.hexdigest()


# Image folders


def _from_folder(root: str) -> Found:
    files: list[tuple[str, str]] = []  # path from the root, stamp
    folders: set[str] = set()
    if storage.is_remote(root):
        ignored = _list_bucket(root, files, folders)
    else:
        try:
            ignored = _scan(root, "", (_identity(Path(root).stat()),), files, folders)
        except OSError as error:
            raise unreadable(error.filename or root, error) from error
    files.sort()
    top = {folder for folder in folders if "/" not in folder}
    depth = _depth(root, top)
    _check_layout(root, top, folders, files, depth)
    name, stamp, label, split = [], [], [], []
    for each, mark in files:
        parts = each.split("/", depth + 1)
        if len(parts) == depth + 2:
            name.append(each)
            stamp.append(mark)
            label.append(parts[depth])
            split.append(SPLIT_NAMES[parts[0].lower()] if depth else TRAIN)
    if not name:
        flat = f"; {len(files):,} images lie in it without a class folder" if files else ""
        raise InputError(f"{root} has no images in class folders{flat}; lay them out as {root}/CLASS/*.jpg")
    wanted = {folder.split("/")[depth] for folder in folders if folder.count("/") >= depth}
    if missing := sorted(wanted - set(label)):
        raise InputError(
            f"{len(missing)} folders of {root} hold no image ({_first(missing)}), and each folder is a class; "
            f"add images ({' '.join(sorted(IMAGES))}) or move the folder elsewhere"
        )
    if ignored:
        say(f"{ignored:,} files of {root} are not images by their ending and are left out")
    if len(name) < len(files):
        say(f"{len(files) - len(name):,} images of {root} lie outside of class folders and are left out")
    path = [f"{root}/{each}" for each in name]
    return Found(path, name, stamp, label, split, path.__getitem__, spaces=True)


def _check_layout(root: str, top: set[str], folders: set[str], files: list[tuple[str, str]], depth: int) -> None:
    """Refuse what looks like one level too many, or a split whose name is misspelt.

    Raises:
        InputError: it does.
    """
    direct = {name.rpartition("/")[0] for name, _ in files}
    holders = {folder for folder in top if folder not in direct and any(f.startswith(f"{folder}/") for f in folders)}
    if depth or not holders:
        return
    splits = {folder for folder in holders if folder.lower() in SPLIT_NAMES}
    if splits and holders != splits:
        raise InputError(
            f"{root} has the split folder {_first(splits)} beside {_first(holders - splits)}, which is none; name all "
            f"of them train, val or test"
        )
    if len(top) == 1:
        (only,) = top
        raise InputError(f"{root} holds one folder, {only}, with folders in it; set data.source={root}/{only}")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _stamp(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns}"


def _is_image(name: str) -> bool:
    return name[name.rfind(".") :].lower() in IMAGES


def _scan(
    folder: str, inner: str, above: tuple[tuple[int, int], ...], files: list[tuple[str, str]], folders: set[str]
) -> int:
    """Collect the images under a folder; the number of other files. A folder inside itself (a link) is not entered."""
    ignored = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if entry.is_dir():
                identity = _identity(entry.stat())
                if identity not in above:
                    if inner.count("/") < 2:  # a split and a class
                        folders.add(inner + name)
                    ignored += _scan(entry.path, f"{inner}{name}/", (*above, identity), files, folders)
            elif _is_image(name):
                try:
                    files.append((inner + name, _stamp(entry.stat())))
                except FileNotFoundError:  # a link to nothing: reading it will say so, with its name
                    files.append((inner + name, "gone"))
            else:
                ignored += 1
    return ignored


def _list_bucket(root: str, files: list[tuple[str, str]], folders: set[str]) -> int:
    ignored = 0
    for item in storage.listing(root):
        name = item.uri[len(root) + 1 :]
        *inner, last = name.split("/")
        if name.startswith(".") or "/." in name:
            continue
        folders.update("/".join(inner[: k + 1]) for k in range(min(len(inner), 2)))
        if _is_image(last):
            files.append((name, f"{item.size} {item.etag}"))
        else:
            ignored += 1
    return ignored


def _depth(root: str, top: set[str]) -> int:
    """Folders above the class folders: 1 where the top folders are splits, else 0."""
    splits = {name for name in top if name.lower() in SPLIT_NAMES}
    if splits == top:
        return 1 if top else 0
    if len(splits) > 1 and "train" in map(str.lower, splits):  # a class may be called train; hardly two of the names
        raise InputError(
            f"{root} has split folders ({_first(splits)}) beside others ({_first(top - splits)}); "
            f"keep only train, val (or validation) and test there, or only class folders"
        )
    return 0


# Split lists and manifests


def _from_tables(config: DataConfig, source: str, tables: list[Rows]) -> Found:
    base = _absolute(config.images) if config.images else source.rpartition("/")[0]
    starts = np.cumsum([0, *(len(table.path) for table in tables)])

    def where(i: int) -> str:
        k = int(np.searchsorted(starts, i, side="right")) - 1
        table = tables[k]
        return f"{table.file} {table.unit} {table.place[i - int(starts[k])]}"

    name = [path for table in tables for path in table.path]
    path = [_resolve(base, each) for each in name]
    if len(set(path)) < len(path):
        first: dict[str, int] = {}
        for i, each in enumerate(path):
            if first.setdefault(each, i) != i:
                raise InputError(
                    f"{where(i)}: {name[i]!r} is listed already in {where(first[each])}; an image has one class and "
                    f"one split: remove one of the two"
                )
    label = [label for table in tables for label in table.label]
    split = [split for table in tables for split in table.split]
    kinds = set(label)
    numbers = all(WHOLE_NUMBER.fullmatch(each) for each in kinds)
    if numbers:
        plain = {each: str(int(each)) for each in kinds}
        label = [plain[each] for each in label]
    words = tables[0].unit == "line"  # the label of a line is one word
    raw = [table.raw for table in tables]
    return Found(path, name, _stamps(path), label, split, where, words, numbers, raw)


# Class names


def _number_classes(config: DataConfig, found: Found) -> tuple[Index, tuple[str, ...]]:
    """Class of each image, and the names of the classes."""
    present = set(found.label)
    keys = _in_order(present)
    given = _read_names(_absolute(config.class_names)) if config.class_names else None
    names: Sequence[str]
    if isinstance(given, dict) and not present & given.keys() and given.keys() == set(map(str, range(len(given)))):
        given = [given[str(k)] for k in range(len(given))]  # keyed by number where labels are names
    if isinstance(given, dict):
        keys = _in_order(given)
        names = [given[key] for key in keys]
        rule, fix = f"is not in {config.class_names}", "add it there or correct the label"
    elif given is not None:
        if not found.numbers and len(given) != len(keys):
            raise InputError(
                f"{config.class_names} names {len(given)} classes, the images have {len(keys)} ({_first(keys)}); "
                f"write one line a class, in that order, or JSON {{label: name}}"
            )
        keys = [str(k) for k in range(len(given))] if found.numbers else keys
        names = given
        rule = f"has no line in {config.class_names}, which names labels 0 to {len(given) - 1}"
        fix = "add the name or correct the label"
    elif found.numbers:
        keys = [str(k) for k in range(len(keys))]
        rule = f"is out of range: there are {len(keys)} labels, so they must run from 0 to {len(keys) - 1}"
        fix = "number them without gaps or set data.class_names"
        names = []
    else:
        names = [key.replace("_", " ") for key in keys] if found.spaces else keys
        rule = fix = ""
    number = {key: k for k, key in enumerate(keys)}
    if unknown := present - number.keys():
        i = next(i for i, label in enumerate(found.label) if label in unknown)
        raise InputError(f"{found.where(i)}: label {found.label[i]!r} {rule}; {fix}")
    label_N = np.fromiter(map(number.__getitem__, found.label), np.int64, len(found.label))
    return label_N, tuple(names or _names_from_folders(found, label_N, len(keys)))


def _in_order(keys: Iterable[str]) -> list[str]:
    """Sorted, and as numbers where all are: 2 before 10."""
    ordered = sorted(keys)
    return sorted(ordered, key=int) if all(WHOLE_NUMBER.fullmatch(key) for key in ordered) else ordered


def _read_names(file: str) -> list[str] | dict[str, str]:
    try:
        text = read_file(file).decode("utf-8-sig")
        value = json.loads(text) if file.lower().endswith(".json") or text.lstrip().startswith("{") else None
    except ValueError as error:
        raise InputError(f"{file} is not UTF-8 text or not JSON ({error}); write a line a class, or JSON") from error
    if value is None:
        return [line.strip() for line in text.rstrip().splitlines()]
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value.values()):
        raise InputError(
            f"{file} is not of the form {{label: name}}; write {{'0': 'cat', '1': 'dog'}} or a line a class"
        )
    return value


def _names_from_folders(found: Found, label_N: Index, classes: int) -> list[str]:
    """Numbers alone name no class; the folder of its images does, where each class has its own."""
    folders = {
        (k, posixpath.basename(folder))
        for k, folder in set(zip(label_N.tolist(), map(posixpath.dirname, found.name), strict=True))
    }
    name = {k: folder.replace("_", " ") for k, folder in folders}
    if len(folders) > classes or len(set(name.values())) < classes or "" in name.values():
        raise InputError(
            f"the labels ({found.where(0)}: {found.label[0]}) are numbers, and the folders of the images do not name "
            f"the classes; set data.class_names to a file with a line a class, in label order"
        )
    return [name[k] for k in range(classes)]


# Addresses


def _absolute(place: str) -> str:
    if storage.is_remote(place):
        return f"s3://{place[5:].rstrip('/')}"
    return str(Path(place).expanduser().absolute())


def _resolve(base: str, path: str) -> str:
    """Absolute and in one spelling, so that the same file is seen to be the same."""
    if storage.is_remote(path):
        return path
    whole = path if path.startswith("/") else f"{base}/{path}"
    if "./" not in path and "//" not in path:
        return whole
    return f"s3://{posixpath.normpath(whole[5:])}" if storage.is_remote(whole) else os.path.normpath(whole)


def _first(names: Sequence[str] | set[str]) -> str:
    some = sorted(names) if isinstance(names, set) else names
    return ", ".join(some[:5]) + (", ..." if len(some) > 5 else "")


def _stamps(path: list[str]) -> list[str]:
    """Size and time (or ETag) of each file.

    Raises:
        InputError: files that do not exist; how many, and the first five.
    """
    remote = _list_folders({each.rpartition("/")[0] for each in path if storage.is_remote(each)})
    stamp, missing = [], []
    for each in path:
        if storage.is_remote(each):
            status = remote.get(each, "")
        else:
            try:
                found = os.stat(each)  # noqa: PTH116  a Path takes three times as long
                status = _stamp(found) if stat.S_ISREG(found.st_mode) else ""
            except (OSError, ValueError):  # ValueError: a NUL byte in the path
                status = ""
        stamp.append(status)
        if not status:
            missing.append(each)
    if missing:
        raise InputError(
            f"{len(missing):,} of {len(path):,} listed images are no files ({_first(missing)}); correct the paths, "
            f"or set data.images to the folder that they start from"
        )
    return stamp


def _list_folders(folders: set[str]) -> dict[str, str]:
    """Address -> size and ETag of all objects in these folders of buckets."""

    def inside(folder: str) -> bool:
        parts = folder.split("/")
        return any("/".join(parts[:k]) in folders for k in range(3, len(parts)))

    with ThreadPoolExecutor(READERS) as pool:
        items = chain.from_iterable(pool.map(storage.listing, [folder for folder in folders if not inside(folder)]))
        return {item.uri: f"{item.size} {item.etag}" for item in items}
