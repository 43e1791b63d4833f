"""The split of each row of a manifest: a column of words (Split, SET, subset), or of yes and no (is_test)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lfm.data.sources.base import TEST, TRAIN, VAL
from lfm.data.sources.split_words import say_splits, splits_of
from lfm.errors import InputError
from lfm.progress import say

WORDS = (
    "split",
    "set",
    "subset",
    "partition",
    "usage",
    "phase",
    "data_split",
    "dataset_split",
    "split_name",
    "train_test",
)
"""Columns of split names, the surest first."""
FLAGS = {
    "is_train": TRAIN, "is_training": TRAIN, "is_val": VAL, "is_valid": VAL, "is_validation": VAL, "is_test": TEST,
    "is_testing": TEST, "is_holdout": TEST,
}  # fmt: skip
UNUSED = ("fold", "folds", "kfold", "k_fold", "cv", "cv_fold", "fold_id")
"""Columns that look like a split, but say not which rows are the test."""
YES_NO = {**dict.fromkeys(("1", "1.0", "true", "yes", "y", "t"), True),
          **dict.fromkeys(("0", "0.0", "false", "no", "n", "f"), False)}  # fmt: skip


def plain_name(column: str) -> str:
    """A column's name without case; spaces and dashes are underscores."""
    return re.sub(r"[\s-]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column.strip()).casefold())


def is_split_column(column: str) -> bool:
    """Whether the column is used as a split, or looks like one."""
    return plain_name(column) in (*WORDS, *FLAGS, *UNUSED)


def split_of_rows(source: str, columns: Mapping[str, Any], place: Sequence[int]) -> list[int] | None:
    """The split of each row; None where no column says it. Columns that look like a split and are not used are said.

    Args:
        source: what an error calls the file.
        columns: name -> Arrow column, of those that are `is_split_column`.
        place: the number of each row, for errors.

    Raises:
        InputError: a value that is no split, or rows that are of two splits.
    """
    by_name = {plain_name(name): name for name in reversed(list(columns))}
    texts = {plain: _texts(columns[name]) for plain, name in by_name.items() if plain not in UNUSED}
    words = next((w for w in WORDS if w in texts and (w == "split" or _looks_like_splits(texts[w]))), None)
    flags = [flag for flag in FLAGS if flag in texts]
    result = None
    if words:
        result = _by_words(source, by_name[words], texts[words], place)
    elif flags:
        result = _by_flags(source, {flag: texts[flag] for flag in flags}, place)
    used = {by_name[words]} if words else {by_name[flag] for flag in flags}
    if used and "split" not in used:
        say(f"{source}: the splits are those of the column {' and '.join(sorted(used))}")
    for name in columns:
        if name not in used:
            say(
                f"warning: {source} has a column {name}, which looks like a split and is not used; "
                f"name it split and give it the values train, val and test if it is one"
            )
    return result


def _texts(column: Any) -> list[str]:
    return ["" if value is None else str(value).strip() for value in column.to_pylist()]


def _looks_like_splits(texts: Sequence[str]) -> bool:
    """Whether one of the values is a split's name: then the others must be, too."""
    return any(split is not None for split in splits_of(set(texts)).values())


def _by_words(source: str, column: str, texts: Sequence[str], place: Sequence[int]) -> list[int]:
    split_of = splits_of(sorted(set(texts)))
    result = []
    for i, word in enumerate(texts):
        if (split := split_of[word]) is None:
            fault = f"split {word!r} is not known; use train, val (or validation) or test"
            raise InputError(
                f"{source} row {place[i]}: {fault if word else f'{column} is empty; use train, val or test'}"
            )
        result.append(split)
    say_splits(f"{source}, column {column}", split_of)
    return result


def _by_flags(source: str, flags: Mapping[str, Sequence[str]], place: Sequence[int]) -> list[int]:
    """Yes in one of the columns is that split; yes in none is the one that has no column."""
    splits = {FLAGS[flag] for flag in flags}
    rest = TRAIN if TRAIN not in splits else TEST if TEST not in splits else VAL
    result = []
    for i, row in enumerate(zip(*flags.values(), strict=True)):
        yes = set()
        for flag, text in zip(flags, row, strict=True):
            if text.lower() not in YES_NO:
                raise InputError(f"{source} row {place[i]}: {flag} is {text!r}; use true or false")
            if YES_NO[text.lower()]:
                yes.add(FLAGS[flag])
        if len(yes) > 1 or (not yes and rest in splits):
            fault = "more than one of" if yes else "none of"
            raise InputError(f"{source} row {place[i]} is in {fault} {', '.join(flags)}; an image has one split")
        result.append(yes.pop() if yes else rest)
    return result
