"""iNaturalist 2018: its lists are JSON, and the species are named in a file of their own. No image is opened here."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np

from lfm.config.schema import DataConfig
from lfm.data.sources.base import TEST, TRAIN, Index, Source
from lfm.data.sources.class_names import named
from lfm.data.sources.downloads import download_again, require
from lfm.data.sources.split_lists import Listed, Published, check_published, source_of
from lfm.errors import InputError

INATURALIST_2018 = {
    "train2018.json": Published(437_513, 8142, 2, 1000),
    "val2018.json": Published(24_426, 8142, 3, 3),
}


def load_inaturalist2018(config: DataConfig) -> Source:
    """The iNaturalist 2018 competition: 437,513 training images of 8,142 species; the TEST split is its val2018.

    The labels of its own test images were never published: every reported score is from the 24,426 images of val2018.
    Class k is the k-th category in the order of the categories' ids.

    Raises:
        InputError: a file or an image is missing, the JSON is damaged, the counts are not the published ones, or
            the species have no names.
    """
    name = "inaturalist2018"
    train_file, test_file = require(config, name, INATURALIST_2018)
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
            raise InputError(
                f"{file} uses category {strange[0]}, which {train_file.name} does not list; {download_again(name)}"
            )
        lists.append(Listed(file, split, paths, np.searchsorted(id_C, id_N).astype(np.int64)))
    check_published(config, name, lists, INATURALIST_2018)
    if not config.class_names and all(name_of[k].isdigit() for k in name_of):
        name_of = _species(train_file.with_name("categories.json"), train_file, id_C)
    return source_of(config, "iNaturalist 2018", lists, named(config, [name_of[int(k)] for k in id_C]))


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
        raise InputError(
            f"{path} is damaged or of another form ({error!r}); {download_again('inaturalist2018')}"
        ) from error
    if not len(ids) == len(category_of) == annotations or category_of.keys() != set(ids):
        raise InputError(f"{path} does not give each image exactly one category; {download_again('inaturalist2018')}")
    twice = next((a for a, b in pairwise(sorted(paths)) if a == b), None)
    if twice or not paths:
        raise InputError(
            f"{path} lists {f'{twice} twice' if twice else 'no image'}; {download_again('inaturalist2018')}"
        )
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
