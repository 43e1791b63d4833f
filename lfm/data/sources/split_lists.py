"""Data sets of image files with published lists: ImageNet-LT, Places-LT, and what all such data sets share.

A list has a line an image, "path label". No image is opened here.
"""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lfm.config.schema import DataConfig
from lfm.data.sources.base import SPLITS, Files, Index, Source
from lfm.data.sources.class_names import named
from lfm.data.sources.downloads import download_again, require
from lfm.data.sources.fingerprint import fingerprint_of, join, stamps_of
from lfm.errors import InputError
from lfm.progress import say


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
    return source_of(config, "ImageNet-LT", lists, named(config, imagenet_names()), equal_names=not config.class_names)


def load_places_lt(config: DataConfig) -> Source:
    """Places-LT (Liu et al. 2019): 62,500 training, 7,300 validation, 36,500 test images, 365 scenes.

    The names are those of categories_places365.txt, if it is in the folder of the lists, otherwise those of the
    training images' folders.

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
    return source_of(config, "Places-LT", lists, named(config, names))


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


def _read_lists(config: DataConfig, name: str, published: dict[str, Published]) -> list[Listed]:
    found = require(config, name, published)
    lists = [Listed(file, split, *read_list(file)) for split, file in enumerate(found)]
    check_published(config, name, lists, published)
    return lists


def check_published(config: DataConfig, name: str, lists: list[Listed], published: dict[str, Published]) -> None:
    """Compare the lists with the published ones, file by file, unless `config.verify` is off.

    Raises:
        InputError: images, classes, or images a class are of another number.
    """
    if not config.verify:
        return
    for listed in lists:
        labels, counts = np.unique(listed.label_N, return_counts=True)
        found = Published(len(listed.paths), len(labels), int(counts.min()), int(counts.max()))
        right = published[listed.file.name]
        if found != right or labels[-1] != right.classes - 1:
            raise InputError(
                f"{listed.file} has {found}, the highest label is {labels[-1]}; the published one has {right}, the "
                f"highest label is {right.classes - 1}; {download_again(name)}; a list of your own: set "
                "data.verify=false"
            )


def source_of(
    config: DataConfig, title: str, lists: list[Listed], names: tuple[str, ...], equal_names: bool = False
) -> Source:
    """The data set of these lists, in their order: the training list comes first, the test list last.

    Args:
        config: `images` is read: the folder or s3:// prefix that paths start from; empty: the folder of the lists.
        title: of the data set, for people.
        lists: of all splits.
        names: of the classes.
        equal_names: whether two of the names are equal, as published.

    Raises:
        InputError: images are missing, or one is in the training list and in the test list.
    """
    both = set(lists[0].paths).intersection(lists[-1].paths)
    if both:
        raise InputError(
            f"{min(both)} stands in {lists[0].file.name} and in {lists[-1].file.name}; a test image must not be "
            f"trained on: take it out of one of them"
        )
    root = config.images or str(lists[0].file.parent)
    paths = [path for listed in lists for path in listed.paths]
    stamps = stamps_of(root, paths)
    counts = ", ".join(f"{len(listed.paths):,} {SPLITS[listed.split]}" for listed in lists)
    say(f"{title}: {counts} images below {root}")
    return Source(
        Files([join(root, path) for path in paths], stamps),
        np.concatenate([listed.label_N for listed in lists]),
        np.repeat(np.array([listed.split for listed in lists], np.int8), [len(listed.paths) for listed in lists]),
        names,
        fingerprint_of(root, paths, [listed.file for listed in lists], stamps),
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
        raise InputError(f"{path} should have each of the labels 0 to {len(categories) - 1} once; download it again")
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
