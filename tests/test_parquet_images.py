"""Parquet files with the images inside, written by `datasets` and pandas; metadata files beside image folders."""

import hashlib
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from lfm.config.schema import DataConfig
from lfm.data.sources.base import SPLITS, Source
from lfm.data.sources.custom import load_custom
from lfm.errors import InputError
from tests.pictures import encoded, photo
from tests.s3 import S3


@pytest.fixture(autouse=True)
def _own_home(home: Path) -> None:
    pass


ZOO = ("owl", "ant", "cow")  # not in alphabetical order


def rows(start: int, n: int) -> list[dict[str, Any]]:
    """Row k shows what class k % 3 is."""
    data = [encoded(photo(k, 12, 12), "jpeg" if k % 2 else "png") for k in range(start, start + n)]
    return [{"image": {"bytes": d, "path": f"{k}.png"}, "label": k % 3} for k, d in enumerate(data)]


def hub(path: Path, content: list[dict[str, Any]], names: tuple[str, ...] = ZOO, label: str = "label") -> Path:
    """As `datasets` writes it, some rows a group."""
    features = datasets.Features({"image": datasets.Image(), label: datasets.ClassLabel(names=list(names))})
    path.parent.mkdir(parents=True, exist_ok=True)
    table = [{"image": row["image"], label: row["label"]} for row in content]
    datasets.Dataset.from_list(table, features=features).to_parquet(path, batch_size=4)
    return path


def load(source: Path | str, **fields: object) -> Source:
    return load_custom(DataConfig(name="custom", source=str(source), **fields))


def content(source: Source) -> dict[tuple[str, str], set[str]]:
    """(split, class) -> the sha256 of its images."""
    found: dict[tuple[str, str], set[str]] = {}
    for i, (label, split) in enumerate(zip(source.label_N, source.split_N, strict=True)):
        key = (SPLITS[split], source.classes[label])
        found.setdefault(key, set()).add(hashlib.sha256(source.images.read(i)).hexdigest())
    return found


def right(splits: dict[str, list[dict[str, Any]]], names: tuple[str, ...] = ZOO) -> dict[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = {}
    for split, of_split in splits.items():
        for row in of_split:
            key = (split, names[row["label"]])
            found.setdefault(key, set()).add(hashlib.sha256(row["image"]["bytes"]).hexdigest())
    return found


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"),
        ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"),
        ("default/train/0000.parquet", "default/train/0001.parquet", "default/test/0000.parquet"),
        ("train/0.parquet", "train/1.parquet", "test/0.parquet"),
        ("training_0.parquet", "training_1.parquet", "testing.parquet"),
    ],
)
def test_the_hubs_folders_are_read(names: tuple[str, str, str], tmp_path: Path) -> None:
    train, more, test = rows(0, 9), rows(20, 6), rows(40, 6)
    for name, part in zip(names, (train, more, test), strict=True):
        hub(tmp_path / name, part, label="animal" if "_" in names[0] else "label")
    source = load(tmp_path)
    assert source.classes == ZOO
    assert content(source) == right({"train": train + more, "test": test})
    assert load(tmp_path).checksum == source.checksum
    hub(tmp_path / names[2], rows(41, 6))
    assert names[0].startswith("training") or load(tmp_path).checksum != source.checksum


def test_one_file_gets_a_test_split_and_other_names(tmp_path: Path) -> None:
    file = hub(tmp_path / "animals.parquet", rows(0, 15))
    source = load(file)
    assert np.bincount(source.split_N, minlength=3).tolist() == [12, 0, 3]
    merged = {name: set().union(*(v for (_, k), v in content(source).items() if k == name)) for name in ZOO}
    assert merged == {name: right({"x": rows(0, 15)})["x", name] for name in ZOO}
    (tmp_path / "n").write_text("cow\nOwls\nant\n")  # in its own order
    assert load(file, class_names=str(tmp_path / "n")).classes == ("Owls", "ant", "cow")


@pytest.mark.parametrize("kind", ["struct", "binary", "words"])
def test_files_of_pandas_are_read(kind: str, tmp_path: Path) -> None:
    some = rows(0, 18)
    table = pd.DataFrame(some)
    table["Split"] = ["train"] * 12 + ["test"] * 6
    table["label"] = [ZOO[k] for k in table["label"]] if kind == "words" else table["label"]
    if kind == "binary":
        table["image"] = [row["image"]["bytes"] for row in some]
    table.to_parquet(tmp_path / "m.parquet")
    (tmp_path / "n").write_text("\n".join(ZOO))
    source = load(tmp_path / "m.parquet", class_names=str(tmp_path / "n"))
    assert content(source) == right({"train": some[:12], "test": some[12:]})


def test_a_file_in_s3_is_read(s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    s3.use(monkeypatch)
    s3.client().create_bucket(Bucket="packed")
    file = hub(tmp_path / "animals.parquet", rows(0, 15))
    s3.client().put_object(Bucket="packed", Key="a/animals.parquet", Body=file.read_bytes())
    assert content(load("s3://packed/a/animals.parquet")) == content(load(file))


def two(folder: Path, first: tuple[str, ...], second: tuple[str, ...]) -> Path:
    hub(folder / "train-00000-of-00001.parquet", rows(0, 9), first)
    hub(folder / "test-00000-of-00001.parquet", rows(20, 6), second)
    return folder


def unlabelled(folder: Path) -> Path:
    hub(folder / "train.parquet", rows(0, 9))
    hub(folder / "test.parquet", [row | {"label": -1} for row in rows(20, 3)])
    return folder


def two_labels(folder: Path) -> Path:
    label = datasets.ClassLabel(names=list(ZOO))
    features = datasets.Features({"image": datasets.Image(), "fine": label, "coarse": label})
    some = [{"image": row["image"], "fine": row["label"], "coarse": 0} for row in rows(0, 3)]
    datasets.Dataset.from_list(some, features=features).to_parquet(folder / "m.parquet")
    return folder / "m.parquet"


def no_image(folder: Path) -> Path:
    return hub(folder / "m.parquet", [*rows(0, 9), {"image": None, "label": 0}])


REFUSED: dict[str, tuple[Any, str]] = {
    "lists in another order": (
        lambda p: two(p, ZOO, ("ant", "cow", "owl")),
        r"have different class lists \(label 0 is '(owl|ant)' and '(owl|ant)'\); write both with one ClassLabel",
    ),
    "lists of another length": (lambda p: two(p, ZOO, (*ZOO, "pig")), r"different class lists \((3 and 4|4 and 3) cl"),
    "rows without a label": (unlabelled, r"test\.parquet row 1 has no label \(column label: (-1|None)\); label such"),
    "two labels": (
        two_labels,
        r"has 2 columns that could hold the label \(fine, coarse\); one is needed: rename it la",
    ),
    "one of several files": (
        lambda p: hub(p / "train-00000-of-00003.parquet", rows(0, 9)),
        r"is one of 3 files, of which there are 1; set data\.source=",
    ),
    "a split of another name": (
        lambda p: hub(p / "train.parquet", rows(0, 9)) and hub(p / "pred.parquet", rows(20, 3)).parent,
        r"has Parquet files of the splits train and of pred, which is none; name all of them",
    ),
    "an image that is nowhere": (no_image, r"row 10 has an image with neither bytes nor path; leave that row out"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_with_the_fix(case: str, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        load(make(tmp_path))


# Metadata beside image folders


def pictures(root: Path, names: list[str]) -> None:
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(photo(k, 12, 12)))


def write_metadata(file: Path, table: dict[str, str]) -> None:
    if file.suffix == ".csv":
        pd.DataFrame({"file_name": list(table), "label": list(table.values())}).to_csv(file, index=False)
    else:
        lines = [json.dumps({"file_name": name, "label": label}) for name, label in table.items()]
        file.write_text("\n".join(lines))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("inner", ["", "images/"])
def test_metadata_label_the_images_beside_them(suffix: str, inner: str, tmp_path: Path) -> None:
    label = {f"{inner}{k}.png": ZOO[k % 3] for k in range(15)}
    pictures(tmp_path, list(label))
    write_metadata(tmp_path / f"metadata{suffix}", label)
    source = load(tmp_path)
    found = {
        source.images.name(i).removeprefix(f"{tmp_path}/"): source.classes[k] for i, k in enumerate(source.label_N)
    }
    assert found == label


def test_metadata_in_split_folders(tmp_path: Path) -> None:
    label = {f"{k}.png": ZOO[k % 3] for k in range(9)}
    for split in ("train", "test"):
        pictures(tmp_path / split, list(label))
        write_metadata(tmp_path / split / "metadata.csv", label)
    source = load(tmp_path)
    for i, (k, split) in enumerate(zip(source.label_N, source.split_N, strict=True)):
        folder, name = source.images.name(i).rsplit("/", 2)[1:]
        assert (SPLITS[split], source.classes[k]) == (folder, label[name])


def test_metadata_beside_class_folders_are_said_to_be_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"{kind}/{k}.png" for kind in ("cat", "dog") for k in range(3)]
    pictures(tmp_path, names)
    write_metadata(tmp_path / "metadata.csv", dict.fromkeys(names, "pet"))
    assert load(tmp_path).classes == ("cat", "dog")
    assert f"{tmp_path}/metadata.csv is not used, since the folders name the classes" in capsys.readouterr().out
