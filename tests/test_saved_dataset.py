"""Data sets that Hugging Face `datasets` saved, as a source."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from lfm.config.schema import DataConfig
from lfm.data.sources.base import SPLITS
from lfm.data.sources.custom import load_custom
from lfm.data.sources.saved_dataset import is_arrow
from lfm.errors import InputError
from tests.pictures import encoded, photo

NAMES = ["cat", "dog"]


def rows(start: int, n: int) -> list[dict[str, Any]]:
    data = [encoded(photo(k, 20, 20), "jpeg" if k % 2 else "png") for k in range(start, start + n)]
    return [{"image": {"bytes": d, "path": None}, "label": k % 2} for k, d in enumerate(data)]


def saved(folder: Path, splits: dict[str, list[dict[str, Any]]], names: list[str] = NAMES, **columns: str) -> Path:
    image, label = columns.get("image", "image"), columns.get("label", "label")
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=names)})
    made = {
        split: datasets.Dataset.from_list([{image: r["image"], label: r["label"]} for r in content], features=features)
        for split, content in splits.items()
    }
    datasets.DatasetDict(made).save_to_disk(folder)
    return folder


def load(folder: Path, **more: Any) -> Any:
    return load_custom(DataConfig(name="custom", source=str(folder), **more))


@pytest.fixture(autouse=True)
def _own_home(home: Path) -> None:
    pass


def test_splits_labels_names_and_bytes_are_those_that_were_saved(tmp_path: Path) -> None:
    content = {"train": rows(0, 7), "validation": rows(20, 2), "test": rows(40, 4)}
    folder = saved(tmp_path / "saved", content, image="picture", label="kind")
    assert is_arrow(folder)
    source = load(folder)
    assert source.classes == ("cat", "dog")
    for split, k in (("train", 0), ("validation", 1), ("test", 2)):
        at = np.flatnonzero(source.split_N == k)
        assert source.label_N[at].tolist() == [row["label"] for row in content[split]]
        assert [source.images.read(int(i)) for i in at] == [row["image"]["bytes"] for row in content[split]]
    assert source.images.name(8) == f"{SPLITS[1]} row 1"


def test_images_by_path_and_a_data_set_without_splits(tmp_path: Path) -> None:
    paths = []
    for k in range(12):
        paths.append(str(tmp_path / f"{k}.png"))
        photo(k, 20, 20).save(paths[-1])
    table = datasets.Dataset.from_dict({"image": paths, "label": [k % 2 for k in range(12)]})
    table = table.cast_column("label", datasets.ClassLabel(names=NAMES)).cast_column("image", datasets.Image())
    table.save_to_disk(tmp_path / "saved")
    source = load(tmp_path / "saved", class_names="")
    for i in range(12):
        assert bytes(source.images.read(i)) == Path(paths[i]).read_bytes()
    assert np.bincount(source.split_N, minlength=3).tolist() == [10, 0, 2], "a test split was made"


def test_the_checksum_follows_the_files(tmp_path: Path) -> None:
    first = saved(tmp_path / "one", {"train": rows(0, 8), "test": rows(20, 2)})
    before = load(first).checksum
    assert load(first).checksum == before
    assert load(saved(tmp_path / "two", {"train": rows(1, 8), "test": rows(20, 2)})).checksum != before


def broken(folder: Path, change: Any) -> Path:
    path = folder / "train" / "dataset_info.json"
    info = json.loads(path.read_text())
    change(info["features"])
    path.write_text(json.dumps(info))
    return folder


BAD: dict[str, tuple[Any, str]] = {
    "a split of another name": (
        lambda p: saved(p, {"train": rows(0, 4), "dev": rows(9, 2)}),
        "has the split 'dev'; name the splits train, val",
    ),
    "no image column": (
        lambda p: broken(saved(p, {"train": rows(0, 4)}), lambda f: f.pop("image")),
        "has 0 columns of the feature Image",
    ),
    "two label columns": (
        lambda p: broken(saved(p, {"train": rows(0, 4)}), lambda f: f.update(more=f["label"])),
        "has 2 columns of the feature ClassLabel",
    ),
    "splits with other classes": (
        lambda p: broken(
            saved(p, {"test": rows(9, 2), "train": rows(0, 4)}), lambda f: f["label"].update(names=["x", "y"])
        ),
        "names other classes than the other splits",
    ),
    "rows without a label": (
        lambda p: saved(p, {"train": [*rows(0, 4), {"image": rows(5, 1)[0]["image"], "label": None}]}),
        "has rows without a label",
    ),
    "an image that is nowhere": (
        lambda p: saved(p, {"train": [*rows(0, 4), {"image": None, "label": 0}]}),
        "neither bytes nor path",
    ),
    "no training images": (
        lambda p: saved(p, {"test": rows(0, 4)}),
        "has no training images; give some the split train",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_cannot_be_used_is_refused_with_the_fix(fault: str, tmp_path: Path) -> None:
    make, message = BAD[fault]
    with pytest.raises(InputError, match=message):
        load(make(tmp_path / "saved"))
