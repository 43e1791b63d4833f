"""Classes get their numbers and names: from the labels as given, or from the file `data.class_names`."""

import json
import posixpath
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lfm.config.schema import DataConfig
from lfm.data.sources.base import Index
from lfm.data.sources.image_listing import Found, absolute, first_few
from lfm.data.sources.manifest import read_file
from lfm.errors import InputError

WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")


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


def number_classes(config: DataConfig, found: Found) -> tuple[Index, tuple[str, ...]]:
    """Class of each image, and the names of the classes.

    Args:
        config: `class_names` is read: a line a class in label order, or JSON {label: name}; empty: the labels are the
            names, or, where they are numbers, the folders of the images.
        found: the images with their labels.

    Returns:
        (N,) classes, and the names of all.

    Raises:
        InputError: the file cannot be read or lacks a label, numbers have a gap, or nothing names the classes.
    """
    present = set(found.label)
    keys = _in_order(present)
    given = _read_names(absolute(config.class_names)) if config.class_names else None
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
                f"{config.class_names} names {len(given)} classes, the images have {len(keys)} ({first_few(keys)}); "
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
