"""Classes get their numbers and names: from the labels as given, or from the file `data.class_names`."""

import posixpath
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from lfm.config.schema import DataConfig
from lfm.data.class_name_audit import sense
from lfm.data.sources.base import Index
from lfm.data.sources.image_listing import Found, absolute, first_few
from lfm.data.sources.manifest import read_file
from lfm.data.sources.names_file import RULE, by_name, by_number, counts, in_label_order, parse_names
from lfm.data.sources.whole_numbers import whole_number
from lfm.errors import InputError, counted
from lfm.progress import say


def named(config: DataConfig, names: Sequence[str]) -> tuple[str, ...]:
    """The class names: of the file `config.class_names` if it is given, else `names`.

    Raises:
        InputError: the file cannot be read, or does not name exactly as many classes.
    """
    if not config.class_names:
        return tuple(names)
    path = Path(config.class_names)
    try:
        found = parse_names(str(path), path.read_bytes())
    except OSError as error:
        raise InputError(f"data.class_names: {path} cannot be read ({error}); {RULE}") from error
    if isinstance(found, dict) and found.keys() == set(names):
        return tuple(found[name] for name in names)
    if isinstance(found, dict):
        found = by_number(found, len(names), str(path))
    if len(found) != len(names):
        named = counted(len(found), "class", "classes")
        raise InputError(f"data.class_names: {path} names {named}, the data have {len(names):,}; {RULE}")
    return tuple(in_label_order(found, names, str(path)) if all(names) else found)


def number_classes(config: DataConfig, found: Found) -> tuple[Index, tuple[str, ...]]:
    """Class of each image, and the names of the classes.

    Args:
        config: `class_names` is read (`lfm.data.sources.names_file`); empty: the labels are the names, or, where they
            are numbers, the folders of the images.
        found: the images with their labels.

    Returns:
        (N,) classes, and the names of all.

    Raises:
        InputError: the file cannot be read or lacks a label, numbers have a gap, or nothing names the classes.
    """
    present = set(found.label)
    keys = _in_order(present)
    names: Sequence[str] = []
    rule = fix = ""
    if config.class_names:
        keys, names, rule, fix = _from_file(absolute(config.class_names), keys, found)
    elif found.numbers:
        keys = [str(k) for k in range(len(keys))]
        are = "is" if len(keys) == 1 else "are"
        rule = f"is out of range: there {are} {counted(len(keys), 'label')}, so they must run from 0 to {len(keys) - 1}"
        fix = "number them without gaps or set data.class_names"
    else:
        names = [key.replace("_", " ") for key in keys] if found.spaces else keys
    number = {key: k for k, key in enumerate(keys)}
    if unknown := present - number.keys():
        i = next(i for i, label in enumerate(found.label) if label in unknown)
        raise InputError(f"{found.where(i)}: label {found.label[i]!r} {rule}; {fix}")
    label_N = np.fromiter(map(number.__getitem__, found.label), np.int64, len(found.label))
    return label_N, tuple(names or _names_from_folders(found, label_N, len(keys)))


def _from_file(file: str, keys: list[str], found: Found) -> tuple[list[str], Sequence[str], str, str]:
    """Labels in their order, their names, and for a label without a name the rule and the fix."""
    given = parse_names(file, read_file(file))
    numbered = isinstance(given, dict) and counts(given.keys())
    if isinstance(given, dict) and found.numbers:
        given = {key if (k := whole_number(key)) is None else str(k): name for key, name in given.items()}
    elif isinstance(given, dict):
        given = by_name(given, keys)
    if isinstance(given, dict) and numbered and not set(keys) & given.keys():
        given = [given[key] for key in _in_order(given)]  # keyed by number where labels are names
    if isinstance(given, dict):
        rule, fix = f"is not in {file}", "add it there or correct the label"
        if not found.numbers and len(given) > len(keys) and set(keys) <= given.keys():
            spare = len(given) - len(keys)
            no_class = "it is no class" if spare == 1 else "they are no classes"
            say(f"{file} names {counted(spare, 'label')} that no image has; {no_class}")
            return keys, [given[key] for key in keys], rule, fix
        keys = _in_order(given)
        return keys, [given[key] for key in keys], rule, fix
    rule = f"has no line in {file}, which names labels 0 to {len(given) - 1}"
    if found.numbers:
        keys = [str(k) for k in range(len(given))]
        _compare_with_folders(file, given, found)
        return keys, given, rule, "add the name or correct the label"
    if len(given) != len(keys):
        raise InputError(
            f"{file} names {counted(len(given), 'class', 'classes')}, the images have {len(keys)} ({first_few(keys)}); "
            f"write one line a class, in that order, or JSON {{label: name}}"
        )
    return keys, in_label_order(given, keys, file), rule, "add the name or correct the label"


def _compare_with_folders(file: str, names: Sequence[str], found: Found) -> None:
    """Refuse names by number where the images of a label lie in the folder of another name."""
    folders: dict[int, set[str]] = {}
    for label, name in zip(found.label, found.name, strict=True):
        folders.setdefault(int(label), set()).add(sense(posixpath.basename(posixpath.dirname(name))))
    place = {sense(name): k for k, name in enumerate(names)}
    for k, inside in sorted(folders.items()):
        (folder, *others) = inside
        other = place.get(folder, k)
        if not others and other != k and 0 <= k < len(names):
            raise InputError(
                f"data.class_names: {file} calls label {k} {names[k]!r}, but all its images lie in a folder "
                f"that is called {names[other]!r} as label {other} is; correct the order of the names, or the labels"
            )


def _in_order(keys: Iterable[str]) -> list[str]:
    """Sorted, and as numbers where all are: 2 before 10."""
    ordered = sorted(keys)
    numbers = {key: whole_number(key) for key in ordered}
    return ordered if None in numbers.values() else sorted(ordered, key=lambda key: numbers[key] or 0)


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
