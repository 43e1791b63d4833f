"""Data sets of image files with published lists: ImageNet-LT, Places-LT, iNaturalist 2018; what to put where.

A list has a line an image, "path label"; iNaturalist has JSON. No image is opened here.
"""

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lfm import storage
from lfm.artifact import home
from lfm.config import DataConfig, InputError, unknown
from lfm.data.source import SPLITS, TEST, TRAIN, Files, Index, Source
from lfm.progress import say

# What to fetch, and from whom. The folder and the options follow in `where_to_put`.
HELP: dict[str, str] = {
    "fashion-mnist": "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
    "t10k-labels-idx1-ubyte.gz of Fashion-MNIST (https://github.com/zalandoresearch/fashion-mnist)",
    "cifar10": "cifar-10-python.tar.gz (or cifar-10-binary.tar.gz, or the unpacked folder of either) of CIFAR-10 "
    "(https://www.cs.toronto.edu/~kriz/cifar.html)",
    "cifar100": "cifar-100-python.tar.gz (or cifar-100-binary.tar.gz, or the unpacked folder of either) of CIFAR-100 "
    "(https://www.cs.toronto.edu/~kriz/cifar.html)",
    "imagenet-lt": "ImageNet_LT_train.txt, ImageNet_LT_val.txt and ImageNet_LT_test.txt of OpenLongTailRecognition "
    "(https://github.com/zhmiao/OpenLongTailRecognition-OLTR), and the train and val images of ImageNet ILSVRC 2012 "
    "(https://image-net.org) in the folders that the lists name",
    "places-lt": "Places_LT_train.txt, Places_LT_val.txt and Places_LT_test.txt of OpenLongTailRecognition "
    "(https://github.com/zhmiao/OpenLongTailRecognition-OLTR), categories_places365.txt if at hand, and the images of "
    "Places365-Standard (http://places2.csail.mit.edu) in the folders that the lists name",
    "inaturalist2018": "train2018.json, val2018.json, categories.json (the names of the species) and the folder "
    "train_val2018 of the iNaturalist 2018 competition (https://github.com/visipedia/inat_comp/tree/master/2018)",
}
FOLDERS = {"cifar10": "cifar-10", "cifar100": "cifar-100"}  # below the downloads, where it is not the name
WITH_IMAGES = ("imagenet-lt", "places-lt", "inaturalist2018")
SHOWN = 5  # missing images that an error names
THREADS = 8  # folders looked into at a time: a network file system answers slowly, but many at once


def downloads(name: str) -> Path:
    """Where the raw files of a data set lie if `data.source` names no folder."""
    return home() / "downloads" / FOLDERS.get(name, name)


def where_to_put(name: str) -> str:
    """Which files of a data set go into which folder, and which option names another; one sentence.

    Raises:
        InputError: no such data set.
    """
    if name not in HELP:
        raise unknown("data set", name, HELP)
    images = "; images elsewhere: set data.images to the folder their paths start from" if name in WITH_IMAGES else ""
    return f"put {HELP[name]} into {downloads(name)}, or set data.source to their folder{images}"


@dataclass(frozen=True)
class Published:
    """What a published list holds: all images, classes, fewest and most images of a class."""

    images: int
    classes: int
    fewest: int
    most: int

    def __str__(self) -> str:
        return f"{self.images:,} images of {self.classes:,} classes, {self.fewest:,} to {self.most:,} a class"


IMAGENET_LT = {
    "ImageNet_LT_train.txt": Published(115_846, 1000, 5, 1280),
    "ImageNet_LT_val.txt": Published(20_000, 1000, 20, 20),
    "ImageNet_LT_test.txt": Published(50_000, 1000, 50, 50),
}
PLACES_LT = {
    "Places_LT_train.txt": Published(62_500, 365, 5, 4980),
    "Places_LT_val.txt": Published(7300, 365, 20, 20),
    "Places_LT_test.txt": Published(36_500, 365, 100, 100),
}
INATURALIST_2018 = {
    "train2018.json": Published(437_513, 8142, 2, 1000),
    "val2018.json": Published(24_426, 8142, 3, 3),
}


@dataclass(frozen=True)
class Listed:
    """One list: its file, its split, the images in its order and their classes."""

    file: Path
    split: int
    paths: list[str]
    label_N: Index


def load_imagenet_lt(config: DataConfig) -> Source:
    """ImageNet-LT (Liu et al. 2019): 115,846 training, 20,000 validation, 50,000 test images, CLIP's 1000 names.

    Raises:
        InputError: a list or an image is missing, a line is wrong, the counts are not the published ones.
    """
    lists = _read_lists(config, "imagenet-lt", IMAGENET_LT)
    return _source(config, "ImageNet-LT", lists, named(config, imagenet_names()), equal_names=not config.class_names)


def load_places_lt(config: DataConfig) -> Source:
    """Places-LT (Liu et al. 2019): 62,500 training, 7,300 validation, 36,500 test images, 365 scenes.

    The names are those of categories_places365.txt, if it lies beside the lists, else of the training images' folders.

    Raises:
        InputError: a list or an image is missing, a line is wrong, the counts are not the published ones.
    """
    lists = _read_lists(config, "places-lt", PLACES_LT)
    train = lists[0]
    seen = np.unique(train.label_N)
    gap = np.flatnonzero(seen != np.arange(len(seen)))
    if len(gap):
        raise InputError(f"{train.file}: no image has label {gap[0]}, but labels go up to {seen[-1]}; leave no gap")
    categories = train.file.with_name("categories_places365.txt")
    if config.class_names:
        names = [""] * len(seen)
    elif categories.is_file():
        names = _category_names(categories)
    else:
        names = _folder_names(train)
    return _source(config, "Places-LT", lists, named(config, names))


def load_inaturalist2018(config: DataConfig) -> Source:
    """The iNaturalist 2018 competition: 437,513 training images of 8,142 species; the TEST split is its val2018.

    The labels of its own test images were never published: every reported score is from the 24,426 images of val2018.
    Class k is the k-th category in the order of the categories' ids.

    Raises:
        InputError: a file or an image is missing, the JSON is damaged, the counts are not the published ones, or
            the species have no names.
    """
    name = "inaturalist2018"
    train_file, test_file = _require(config, name, INATURALIST_2018)
    train_paths, train_id_N, name_of = _read_json(train_file)
    test_paths, test_id_N, _ = _read_json(test_file)
    id_C = np.array(sorted(name_of), np.int64)
    lists = []
    for file, split, paths, id_N in (
        (train_file, TRAIN, train_paths, train_id_N),
        (test_file, TEST, test_paths, test_id_N),
    ):
        strange = np.setdiff1d(id_N, id_C)
        if len(strange):
            raise InputError(f"{file} uses category {strange[0]}, which {train_file.name} does not list; {_anew(name)}")
        lists.append(Listed(file, split, paths, np.searchsorted(id_C, id_N).astype(np.int64)))
    _check_published(config, name, lists, INATURALIST_2018)
    if not config.class_names and all(name_of[k].isdigit() for k in name_of):
        name_of = _species(train_file.with_name("categories.json"), train_file, id_C)
    return _source(config, "iNaturalist 2018", lists, named(config, [name_of[int(k)] for k in id_C]))


def read_list(path: Path) -> tuple[list[str], Index]:
    """A list of images: lines "path label", where the path may hold spaces; blank lines count for nothing.

    Returns:
        The paths, and (N,) labels, in the order of the lines.

    Raises:
        InputError: the file cannot be read or is empty, or a line has no label, a label that is no whole number from
            0, or a path that stood before.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a list with lines 'path label'") from error
    except UnicodeDecodeError as error:
        before = error.object[: error.start].count(b"\n")
        raise InputError(f"{path}:{before + 1}: byte {error.start} is not UTF-8; save the list as UTF-8") from error
    line_of: dict[str, int] = {}
    labels = []
    for number, line in enumerate(text.split("\n"), 1):
        words = line.rsplit(None, 1)
        if not words:
            continue
        if len(words) < 2 or re.fullmatch("[0-9]{1,9}", words[1], re.ASCII) is None:
            raise InputError(f"{path}:{number}: {line.strip()!r}: {_label_rule(words)}")
        image = words[0].strip()
        if image in line_of:
            raise InputError(
                f"{path}:{number}: {line.strip()!r}: the same path stands in line {line_of[image]}; delete one of them"
            )
        line_of[image] = number
        labels.append(int(words[1]))
    if not labels:
        raise InputError(f"{path} lists no image; give it lines 'path label'")
    return list(line_of), np.array(labels, np.int64)


def _label_rule(words: list[str]) -> str:
    if len(words) < 2:
        return "a line needs a path and a label; write 'path label'"
    if re.fullmatch("-[0-9]+", words[1]):
        return f"label {words[1]} is negative; number the classes from 0"
    return f"label {words[1]!r} is not a whole number of at most nine digits; write the class's number, from 0"


def named(config: DataConfig, names: Sequence[str]) -> tuple[str, ...]:
    """The class names: of the file `config.class_names` if it is given, else `names`.

    Raises:
        InputError: the file cannot be read, or does not name exactly as many classes.
    """
    if not config.class_names:
        return tuple(names)
    path = Path(config.class_names)
    rule = "give a line a class in label order, or JSON {label: name}"
    try:
        text = path.read_bytes().decode("utf-8-sig").strip()
        table: Any = json.loads(text) if path.suffix == ".json" or text.startswith("{") else None
    except (OSError, ValueError) as error:
        raise InputError(f"data.class_names: {path} cannot be read ({error}); {rule}") from error
    if table is None:
        found = [line.strip() for line in text.split("\n")]
    elif not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise InputError(f"data.class_names: {path} is not a JSON object of strings; {rule}")
    else:
        wrong = table.keys() ^ {str(k) for k in range(len(names))}
        if wrong:
            raise InputError(
                f"data.class_names: {path} should have the labels 0 to {len(names) - 1}, each once, but label "
                f"{min(wrong)!r} is {'none of them' if min(wrong) in table else 'missing'}; {rule}"
            )
        found = [table[str(k)] for k in range(len(names))]
    if len(found) != len(names):
        raise InputError(f"data.class_names: {path} names {len(found):,} classes, the data have {len(names):,}; {rule}")
    return tuple(found)


def fingerprint(root: str, paths: Sequence[str], files: Iterable[Path] = ()) -> str:
    """Checksum of listed images by (path, size, time of change), in their order, and of the lists' bytes.

    Each folder is read once, so that a million images take seconds. Images at s3:// count by their address alone.

    Args:
        root: folder or s3:// prefix that relative paths start from.
        paths: as listed.
        files: the lists, whose bytes count.

    Raises:
        InputError: images are missing; the message has their number and the first five.
    """
    fulls = [_join(root, path) for path in paths]
    local = [i for i, full in enumerate(fulls) if not storage.is_remote(full)]
    facts = [f"{full}\n" for full in fulls] if len(local) < len(paths) else [""] * len(paths)
    missing = []
    for i, fact in zip(local, _facts([fulls[i] for i in local]), strict=True):
        facts[i] = f"{paths[i]}\0{fact}\n"
        if not fact:
            missing.append(fulls[i])
    if missing:
        raise InputError(
            f"{len(missing):,} of {len(paths):,} listed images are missing: {', '.join(missing[:SHOWN])}"
            f"{' ...' if len(missing) > SHOWN else ''}; put them there, or set data.images to the folder that "
            f"the paths in the list start from"
        )
    digest = hashlib.blake2b("".join(facts).encode("utf-8", "surrogateescape"), digest_size=16)
    for file in files:
        digest.update(hashlib.blake2b(file.read_bytes()).digest())
    return digest.hexdigest()


def _join(root: str, path: str) -> str:
    return path if storage.is_remote(path) or path.startswith("/") else f"{root.rstrip('/')}/{path}"


def _facts(fulls: Sequence[str]) -> list[str]:
    """Of each local file "size time", or "" if there is no such file."""
    facts = [""] * len(fulls)
    inside: dict[str, list[int]] = {}
    for i, full in enumerate(fulls):
        inside.setdefault(full.rpartition("/")[0], []).append(i)

    def look(folder: str) -> None:
        try:
            with os.scandir(folder or "/") as entries:
                there = {entry.name: entry for entry in entries}
        except OSError:
            return
        for i in inside[folder]:
            entry = there.get(fulls[i].rpartition("/")[2])
            if entry and entry.is_file():
                status = entry.stat()
                facts[i] = f"{status.st_size} {status.st_mtime_ns}"

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(look, inside))
    return facts


def _anew(name: str) -> str:
    return f"get it anew: {where_to_put(name)}"


def _require(config: DataConfig, name: str, files: Iterable[str]) -> list[Path]:
    folder = Path(config.source) if config.source else downloads(name)
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise InputError(f"{folder} has no {' and no '.join(missing)}; {where_to_put(name)}")
    return [folder / file for file in files]


def _read_lists(config: DataConfig, name: str, published: dict[str, Published]) -> list[Listed]:
    found = _require(config, name, published)
    lists = [Listed(file, split, *read_list(file)) for split, file in enumerate(found)]
    _check_published(config, name, lists, published)
    return lists


def _check_published(config: DataConfig, name: str, lists: list[Listed], published: dict[str, Published]) -> None:
    if not config.verify:
        return
    for listed in lists:
        labels, counts = np.unique(listed.label_N, return_counts=True)
        found = Published(len(listed.paths), len(labels), int(counts.min()), int(counts.max()))
        right = published[listed.file.name]
        if found != right or labels[-1] != right.classes - 1:
            raise InputError(
                f"{listed.file} has {found}, the highest label is {labels[-1]}; the published one has {right}, the "
                f"highest label is {right.classes - 1}; {_anew(name)}; a list of your own: set data.verify=false"
            )


def _source(
    config: DataConfig, title: str, lists: list[Listed], names: tuple[str, ...], equal_names: bool = False
) -> Source:
    both = set(lists[0].paths).intersection(lists[-1].paths)
    if both:
        raise InputError(
            f"{min(both)} stands in {lists[0].file.name} and in {lists[-1].file.name}; a test image must not be "
            f"trained on: take it out of one of them"
        )
    root = config.images or str(lists[0].file.parent)
    paths = [path for listed in lists for path in listed.paths]
    counts = ", ".join(f"{len(listed.paths):,} {SPLITS[listed.split]}" for listed in lists)
    say(f"{title}: {counts} images below {root}")
    return Source(
        Files([_join(root, path) for path in paths]),
        np.concatenate([listed.label_N for listed in lists]),
        np.repeat(np.array([listed.split for listed in lists], np.int8), [len(listed.paths) for listed in lists]),
        names,
        fingerprint(root, paths, [listed.file for listed in lists]),
        equal_names,
    )


def imagenet_names() -> tuple[str, ...]:
    """CLIP's 1000 class names of ImageNet, in label order. Two pairs are equal: "missile" and "sunglasses"."""
    package = importlib.util.find_spec("open_clip")
    assert package and package.submodule_search_locations
    # The file alone: importing the package takes seconds.
    path = Path(package.submodule_search_locations[0]) / "zero_shot_metadata.py"
    spec = importlib.util.spec_from_file_location("zero_shot_metadata", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return tuple(module.IMAGENET_CLASSNAMES)


def _scene(folder: str) -> str:
    return " ".join(re.split("[-_/]+", folder.strip("/")))


def _category_names(path: Path) -> list[str]:
    categories, label_C = read_list(path)
    if sorted(label_C.tolist()) != list(range(len(categories))):
        raise InputError(f"{path} should have each of the labels 0 to {len(categories) - 1} once; get it anew")
    return [_scene(re.sub("^/?[a-z]/", "", categories[i])) for i in np.argsort(label_C)]


def _folder_names(train: Listed) -> list[str]:
    """data_256/a/apartment_building/outdoor/0001.jpg and train/apartment_building-outdoor/0001.jpg: the same name."""
    folder_of: dict[int, str] = {}
    for path, label in zip(train.paths, train.label_N.tolist(), strict=True):
        folder = path.rpartition("/")[0]
        if folder_of.setdefault(label, folder) != folder:
            raise InputError(
                f"{train.file}: label {label} stands for two folders, {folder_of[label]} and {folder}; give each "
                f"folder a label of its own, or name the classes with data.class_names"
            )
    parts = sorted(folder.split("/") for folder in folder_of.values())
    # The folders above all classes say nothing. What differs between the first and the last differs somewhere.
    shared = next(
        (k for k, pair in enumerate(zip(parts[0], parts[-1], strict=False)) if pair[0] != pair[1]), len(parts[0]) - 1
    )
    names = []
    for _, folder in sorted(folder_of.items()):
        words = folder.split("/")
        letters = [k for k, word in enumerate(words[:-1]) if len(word) == 1]
        names.append(_scene("/".join(words[letters[-1] + 1 if letters else shared :])))
    return names


def _read_json(path: Path) -> tuple[list[str], Index, dict[int, str]]:
    """The images, the category id of each, and the categories' names by id."""
    try:
        table = json.loads(path.read_bytes())
        paths = [str(image["file_name"]) for image in table["images"]]
        ids = [int(image["id"]) for image in table["images"]]
        category_of = {int(item["image_id"]): int(item["category_id"]) for item in table["annotations"]}
        annotations = len(table["annotations"])
        name_of = {int(item["id"]): str(item["name"]) for item in table["categories"]}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is damaged or of another form ({error!r}); {_anew('inaturalist2018')}") from error
    if not len(ids) == len(category_of) == annotations or category_of.keys() != set(ids):
        raise InputError(f"{path} does not give each image exactly one category; {_anew('inaturalist2018')}")
    twice = next((a for a, b in pairwise(sorted(paths)) if a == b), None)
    if twice or not paths:
        raise InputError(f"{path} lists {f'{twice} twice' if twice else 'no image'}; {_anew('inaturalist2018')}")
    return paths, np.array([category_of[i] for i in ids], np.int64), name_of


def _species(path: Path, train_file: Path, id_C: Index) -> dict[int, str]:
    fix = f"bring categories.json of the iNaturalist 2018 competition to {path}, or name them with data.class_names"
    try:
        table = json.loads(path.read_bytes())
        items = table["categories"] if isinstance(table, dict) else table
        name_of = {int(item["id"]): str(item["name"]) for item in items}
    except FileNotFoundError as error:
        raise InputError(f"{train_file} hides the species behind numbers, and text needs their names; {fix}") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is damaged or of another form ({error!r}); {fix}") from error
    unnamed = [int(k) for k in id_C if name_of.get(int(k), "0").isdigit()]
    if unnamed:
        raise InputError(f"{path} has no name for category {unnamed[0]}; {fix}")
    return name_of
