"""Parquet files with the images inside, as the Hugging Face hub and `datasets` write them."""

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lfm.config.schema import DataConfig
from lfm.data.sources.base import SPLITS, TRAIN, Encoded, Index, Joined, stamp_of
from lfm.data.sources.class_names import named, number_classes
from lfm.data.sources.image_listing import Found, first_few
from lfm.data.sources.manifest import LABEL_COLUMNS, PATH_COLUMNS, read_file
from lfm.data.sources.split_columns import is_split_column, plain_name, split_of_rows
from lfm.data.sources.split_words import say_splits, splits_of
from lfm.data.sources.whole_numbers import whole_number
from lfm.errors import InputError
from lfm.storage import s3

SHARD = re.compile(r"(.*?)[-_.]?([0-9]+)(?:-of-([0-9]+))?")
"""train-00000-of-00003: the split, the place, the number of files."""


def _stamp(file: str) -> str:
    """Changes when the file does."""
    if s3.is_remote(file):
        return hashlib.blake2b(read_file(file)).hexdigest()
    return stamp_of(Path(file).stat())


@functools.lru_cache(maxsize=8)
def _open(file: str, stamp: str) -> Any:
    return pq.ParquetFile(pa.BufferReader(read_file(file)) if s3.is_remote(file) else file, memory_map=True)


@functools.lru_cache(maxsize=8)
def _group(file: str, stamp: str, column: str, group: int) -> Any:
    """The images of one row group: what is read at a time."""
    found = _open(file, stamp).read_row_group(group, columns=[column]).column(column).combine_chunks()
    if not s3.is_remote(file) and _stamp(file) != stamp:  # a remote file was read whole, once
        raise InputError(f"{file} has changed since it was listed; begin again once the data are at rest")
    return found


@dataclass(frozen=True)
class _Packed:
    """The images in one column of a file."""

    file: str
    stamp: str
    column: str
    starts: tuple[int, ...]
    """The first row of each row group, and the number of rows."""

    def __len__(self) -> int:
        return self.starts[-1]

    def name(self, i: int) -> str:
        return f"{self.file} row {i + 1}"

    def read(self, i: int) -> bytes:
        group = int(np.searchsorted(self.starts, i, side="right")) - 1
        value = _group(self.file, self.stamp, self.column, group)[i - self.starts[group]].as_py()
        data, path = (value, None) if value is None or isinstance(value, bytes) else (value["bytes"], value.get("path"))
        if data is None and path:
            base = self.file.rpartition("/")[0]
            data = read_file(path if s3.is_remote(path) or path.startswith("/") else f"{base}/{path}")
        if data is None:
            raise InputError(f"{self.name(i)} has an image with neither bytes nor path; leave that row out")
        return bytes(data)


@dataclass(frozen=True)
class _Columns:
    """Where a file has its images and labels."""

    image: str
    label: str
    classes: tuple[str, ...] | None
    """Of the ClassLabel that the metadata tell of, in the order of its numbers."""


def packed_files(source: str) -> list[str]:
    """The Parquet files with images inside that a source is: one file, or a local folder as the hub lays it out."""
    if source.lower().endswith(".parquet"):
        return [source] if _holds_images(source) else []
    if s3.is_remote(source) or not Path(source).is_dir():
        return []
    for place in ("", "data", "default"):
        inner = Path(source) / place
        if inner.is_dir():
            splits = [sub for sub in inner.iterdir() if sub.is_dir() and splits_of([sub.name])[sub.name] is not None]
            files = sorted(str(file) for folder in (inner, *splits) for file in folder.glob("*.parquet"))
            if files and _holds_images(files[0]):
                return files
    return []


def _holds_images(file: str) -> bool:
    try:
        schema = _open(file, _stamp(file)).schema_arrow
    except (pa.ArrowException, OSError, InputError):
        return False  # the reader of manifests says what is wrong with it
    return any(_is_image(field) for field in schema)


def _is_image(column: Any) -> bool:
    kind = column.type
    if pa.types.is_struct(kind):
        return any(kind.field(k).name == "bytes" for k in range(kind.num_fields))
    return (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)) and plain_name(column.name) in PATH_COLUMNS


def read_packed(
    config: DataConfig, source: str, files: Sequence[str]
) -> tuple[Encoded, Index, NDArray[np.int8], tuple[str, ...], str]:
    """Images, labels, splits, class names and checksum of Parquet files with images inside.

    Raises:
        InputError: no image or label column, files that disagree on the classes, rows without a label, a file of
            several that is missing.
    """
    split_of_file = _splits_of_files(source, files)
    stamps = {file: _stamp(file) for file in files}
    columns = {file: _columns(file, _open(file, stamps[file]).schema_arrow) for file in files}
    first, *others = files
    for file in others:
        _same_classes(first, columns[first].classes, file, columns[file].classes)
    images: list[Encoded] = []
    labels: list[str] = []
    splits: list[int] = []
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        parquet, use = _open(file, stamps[file]), columns[file]
        groups = [parquet.metadata.row_group(k).num_rows for k in range(parquet.num_row_groups)]
        images.append(_Packed(file, stamps[file], use.image, tuple(np.cumsum([0, *groups]).tolist())))
        mine = _labels(file, parquet, use)
        labels += mine
        wanted = [name for name in parquet.schema_arrow.names if is_split_column(name)]
        table = parquet.read(columns=wanted)
        own = split_of_rows(file, {k: table.column(k) for k in wanted}, range(1, len(mine) + 1))
        splits += own or [split_of_file[file]] * len(mine)
        digest.update(f"{Path(file).name}\0{stamps[file]}\0{split_of_file[file]}\n".encode())
    label_N, classes = _numbered(config, columns[first].classes, labels, splits, Joined(images))
    digest.update("\0".join(classes).encode() + label_N.tobytes())
    return Joined(images), label_N, np.array(splits, np.int8), classes, digest.hexdigest()


def _numbered(
    config: DataConfig, classes: tuple[str, ...] | None, labels: list[str], splits: list[int], images: Encoded
) -> tuple[Index, tuple[str, ...]]:
    """Classes and names: of the ClassLabel where there is one, else as in a manifest."""
    if classes is not None:
        return np.array(labels, np.int64), named(config, classes)
    numbers = {label: whole_number(label) for label in set(labels)}
    whole = None not in numbers.values()
    plain = [str(numbers[label]) for label in labels] if whole else labels
    names = [images.name(i) for i in range(len(images))]
    return number_classes(config, Found(names, names, [], plain, splits, names.__getitem__, False, whole))


def _columns(file: str, schema: Any) -> _Columns:
    raw = (schema.metadata or {}).get(b"huggingface")
    features = json.loads(raw).get("info", {}).get("features", {}) if raw else {}
    kinds = {name: feature.get("_type") for name, feature in features.items() if isinstance(feature, dict)}
    image = _one(file, "image", [f.name for f in schema if _is_image(f)], [k for k in kinds if kinds[k] == "Image"])
    plain = [name for name in schema.names if plain_name(name) in (*LABEL_COLUMNS, "labels")]
    label = _one(file, "label", plain, [k for k in kinds if kinds[k] == "ClassLabel"])
    names = features[label].get("names") if kinds.get(label) == "ClassLabel" else None
    return _Columns(image, label, tuple(map(str, names)) if names else None)


def _one(file: str, what: str, by_type: list[str], by_feature: list[str]) -> str:
    """The column to use: the metadata's, else by its type or name; of several the one that is called so."""
    found = by_feature or by_type
    found = found if len(found) == 1 else [name for name in found if plain_name(name) == what] or found
    if len(found) != 1:
        raise InputError(
            f"{file} has {len(found)} columns that could hold the {what} ({', '.join(found)}); one is needed: rename "
            f"it {what}, or drop the others"
        )
    return found[0]


def _labels(file: str, parquet: Any, use: _Columns) -> list[str]:
    values = parquet.read(columns=[use.label]).column(use.label).to_pylist()
    bad = next((i for i, v in enumerate(values) if v is None or v == "" or (use.classes is not None and v < 0)), None)
    if bad is not None:
        raise InputError(
            f"{file} row {bad + 1} has no label (column {use.label}: {values[bad]!r}); label such rows, or leave the "
            f"file out, as the hub's test splits without labels"
        )
    return [str(value).strip() for value in values]


def _same_classes(first: str, ours: tuple[str, ...] | None, file: str, theirs: tuple[str, ...] | None) -> None:
    """Refuse files whose numbers mean different classes, which `datasets` would swap without a word.

    Raises:
        InputError: they do; the first number that differs is named.
    """
    if ours == theirs:
        return
    if ours is None or theirs is None:
        raise InputError(
            f"one of {first} and {file} names classes and the other does not; write both with one ClassLabel"
        )
    k = next((k for k, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    what = f"label {k} is {ours[k]!r} and {theirs[k]!r}" if k is not None else f"{len(ours)} and {len(theirs)} classes"
    raise InputError(f"{first} and {file} have different class lists ({what}); write both with one ClassLabel")


def _splits_of_files(source: str, files: Sequence[str]) -> dict[str, int]:
    """The split of each file by its name, or by its folder's where the name is a number."""
    word_of, number_of = {}, {}
    for file in files:
        folder, _, name = file.rpartition("/")
        stem = name.rpartition(".")[0]
        match = SHARD.fullmatch(stem)
        word, _, number_of[file] = match.groups() if match else (stem, "", None)
        inner = folder.rpartition("/")[2]
        word_of[file] = inner if not word or splits_of([inner])[inner] is not None else word
    for file, number in number_of.items():
        together = sum(word == word_of[file] and number_of[each] == number for each, word in word_of.items())
        if number is not None and together != int(number):
            where = f"set data.source={file.rpartition('/')[0]}" if source == file else "bring the others"
            raise InputError(f"{file} is one of {int(number)} files, of which there are {together}; {where}")
    split_of = splits_of(sorted(set(word_of.values())))
    unknown = {word for word, split in split_of.items() if split is None}
    if unknown and len(unknown) < len(split_of):
        raise InputError(
            f"{source} has Parquet files of the splits {first_few(set(split_of) - unknown)} and of "
            f"{first_few(unknown)}, which is none; name all of them {', '.join(SPLITS)}"
        )
    if not unknown:
        say_splits(source, split_of)
    return {file: TRAIN if (split := split_of[word]) is None else split for file, word in word_of.items()}
