"""A Hugging Face `datasets` folder (`save_to_disk`), or one of our own artifacts, as a source."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lfm.data.sources.base import SPLITS, Encoded, Files, Index, Joined
from lfm.data.sources.split_words import say_splits, splits_of
from lfm.data.table import Table
from lfm.errors import InputError


def is_arrow(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


@dataclass(frozen=True)
class _Rows:
    """The images of a table."""

    table: Table
    split: str

    def __len__(self) -> int:
        return len(self.table)

    def name(self, i: int) -> str:
        return f"{self.split} row {i}"

    def read(self, i: int) -> bytes:
        return bytes(self.table.encoded(i))


def read_arrow(folder: Path) -> tuple[Encoded, Index, np.ndarray[Any, np.dtype[np.int8]], tuple[str, ...], str]:
    """Images, labels, splits, class names and checksum of a saved data set with one Image and one ClassLabel column.

    Raises:
        InputError: no such columns, splits that disagree on the classes, a label that is missing, no image bytes.
    """
    splits = {"train": folder} if (folder / "state.json").is_file() else _splits(folder)
    parts: list[Encoded] = []
    labels, places, names, digest = [], [], None, hashlib.blake2b(digest_size=16)
    for split, place in splits.items():
        features = json.loads((place / "dataset_info.json").read_text())["features"]
        image = _only(features, "Image", place)
        label = _only(features, "ClassLabel", place)
        if names not in (None, features[label]["names"]):
            raise InputError(f"{place} names other classes than the other splits of {folder}; save them with one list")
        names = features[label]["names"]
        table = Table(place, image)
        label_N = table.column(label)
        if label_N.dtype.kind not in "iu" or (label_N < 0).any():
            raise InputError(f"{place} has rows without a label (column {label}); label them or leave them out")
        labels.append(label_N.astype(np.int64))
        places.append(np.full(len(table), SPLITS.index(split), np.int8))
        parts.append(_images(table, split, place))
        for path in sorted(place.glob("*.arrow")):
            status = path.stat()
            digest.update(f"{split}/{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    assert names is not None
    return Joined(parts), np.concatenate(labels), np.concatenate(places), tuple(names), digest.hexdigest()


def _images(table: Table, split: str, place: Path) -> Encoded:
    if not any(part.null_count for part in table.bytes):
        return _Rows(table, split)
    paths = pa.chunked_array([batch.column(table.image).field("path") for batch in table.batches])
    if paths.null_count:
        raise InputError(f"{place} has images with neither bytes nor path; save it again with embedded images")
    return Files([str(path) for path in paths.to_pylist()])


def _splits(folder: Path) -> dict[str, Path]:
    found = json.loads((folder / "dataset_dict.json").read_text())["splits"]
    split_of = splits_of(found)
    names = [SPLITS[split] for split in split_of.values() if split is not None]
    if len(set(names)) < len(split_of):
        unknown = [word for word, split in split_of.items() if split is None] or found
        raise InputError(f"{folder} has the split {unknown[0]!r}; name the splits train, val (or validation), test")
    say_splits(str(folder), split_of)
    return {name: folder / word for name, word in zip(names, split_of, strict=True)}


def _only(features: dict[str, Any], kind: str, place: Path) -> str:
    found = [name for name, feature in features.items() if feature.get("_type") == kind]
    if len(found) != 1:
        raise InputError(
            f"{place} has {len(found)} columns of the feature {kind}, one is needed; rename or drop columns, or cast "
            f"with datasets.{kind}"
        )
    return found[0]
