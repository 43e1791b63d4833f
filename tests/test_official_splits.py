"""An official split under another spelling stays out of training; one that is not understood is said or asked for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from lfm.config.schema import DataConfig
from lfm.data.sources.base import SPLITS, Source
from lfm.data.sources.custom import load_custom
from lfm.errors import InputError
from tests.pictures import encoded, photo


@pytest.fixture(autouse=True)
def _own_home(home: Path) -> None:
    pass


OFFICIAL = [("train", 4), ("val", 1), ("test", 2)]


def images(root: Path) -> list[dict[str, Any]]:
    """A row an image: path, label and true split; seven images of each of two classes."""
    rows: list[dict[str, Any]] = []
    for kind in ("cat", "dog"):
        (root / kind).mkdir(parents=True)
        for i, split in enumerate([split for split, n in OFFICIAL for _ in range(n)]):
            (root / kind / f"{i}.png").write_bytes(encoded(photo(50 * len(rows) + i, 12, 12)))
            rows.append({"path": f"{kind}/{i}.png", "label": kind, "true": split})
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    frame = pd.DataFrame(rows)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def load(source: Path) -> Source:
    return load_custom(DataConfig(name="custom", source=str(source)))


def splits(source: Source) -> dict[str, str]:
    """Path from the class folder's parent -> split."""
    return {"/".join(source.images.name(i).rsplit("/", 2)[1:]): SPLITS[k] for i, k in enumerate(source.split_N)}


COLUMNS: dict[str, dict[str, Mapping[str, Any]]] = {
    # columns, each with the value of every true split
    "Split": {"Split": {"train": "Training", "val": "Validation", "test": "Testing"}},
    "SET": {"SET": {"train": "TRAIN", "val": "VALID", "test": "TEST"}},
    "subset": {"subset": {"train": "train_set", "val": "eval", "test": "holdout"}},
    "partition": {"partition": {"train": "train", "val": "val", "test": "hold-out"}},
    "Data Split": {"Data Split": {"train": "trn", "val": "validation", "test": "tst"}},
    "is_test": {"is_test": {"train": 0, "val": 0, "test": 1}},
    "Is Test": {"Is Test": {"train": "no", "val": "no", "test": "yes"}},
    "isTrain": {"isTrain": {"train": True, "val": True, "test": False}},
    "is_valid and is_test": {
        "is_valid": {"train": False, "val": True, "test": False},
        "is_test": {"train": False, "val": False, "test": True},
    },
    "split beside set": {
        "set": {"train": "A", "val": "B", "test": "A"}, "split": {"train": "train", "val": "val", "test": "test"}
    },
}  # fmt: skip
WITHOUT_VAL = {"is_test", "Is Test", "isTrain"}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
@pytest.mark.parametrize("case", COLUMNS)
def test_columns_of_another_name_are_the_split(case: str, suffix: str, tmp_path: Path) -> None:
    rows = images(tmp_path)
    true = {row["path"]: "train" if row["true"] == "val" and case in WITHOUT_VAL else row["true"] for row in rows}
    table = [
        {"Path": row["path"], "LABEL": row["label"]} | {c: of[row["true"]] for c, of in COLUMNS[case].items()}
        for row in rows
    ]
    assert splits(load(write(tmp_path / f"m{suffix}", table))) == true


def test_eval_is_the_test_where_there_is_no_other(tmp_path: Path) -> None:
    rows = [row | {"split": "eval" if row["true"] == "test" else "train"} for row in images(tmp_path)]
    found = splits(load(write(tmp_path / "m.csv", rows)))
    assert found == {row["path"]: "test" if row["true"] == "test" else "train" for row in rows}


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("fold", [1, 2, 3], "has a column fold, which looks like a split and is not used; name it split"),
        ("CV", ["a", "b", "c"], "has a column CV, which looks like a split and is not used"),
        ("subset", ["red", "green", "blue"], "has a column subset, which looks like a split and is not used"),
    ],
)
def test_a_column_that_is_not_used_is_said(
    column: str, values: list[Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = images(tmp_path)
    value = dict(zip(("train", "val", "test"), values, strict=True))
    load(write(tmp_path / "m.csv", [row | {column: value[row["true"]]} for row in rows]))
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"Usage": {"train": "Training", "val": "PublicTest", "test": "PrivateTest"}},
         r"row 6: split 'PublicTest' is not known; use train"),
        ({"subset": {"train": "train", "val": "", "test": "test"}}, r"row 6: subset is empty; use train, val or test"),
        ({"is_test": {"train": 0, "val": 2, "test": 1}}, r"row 6: is_test is '2'; use true or false"),
        ({"is_train": {"train": 1, "val": 1, "test": 0}, "is_test": {"train": 0, "val": 1, "test": 1}},
         r"row 6 is in more than one of is_train, is_test; an image has one split"),
    ],
)  # fmt: skip
def test_doubtful_values_are_asked_for(columns: dict[str, dict[str, Any]], message: str, tmp_path: Path) -> None:
    rows = [row | {c: of[row["true"]] for c, of in columns.items()} for row in images(tmp_path)]
    with pytest.raises(InputError, match=message):
        load(write(tmp_path / "m.csv", rows))


LISTS = [
    ("Train.txt", "Val.txt", "Test.txt"),
    ("TRAIN.TXT", "VAL.TXT", "TEST.TXT"),
    ("train.txt", "valid.txt", "Test.txt"),
    ("training_list.txt", "validation_list.txt", "testing_list.txt"),
    ("cars_train.txt", "cars_eval.txt", "cars_test.txt"),
    ("train.txt", "val.txt", "eval.txt"),
    ("Train.txt", "val.txt", "holdout.txt"),
    ("trainval.txt", "", "test.txt"),
    ("TrainVal.txt", "", "Test.txt"),
]


@pytest.mark.parametrize("names", LISTS, ids="-".join)
def test_lists_of_another_spelling_are_the_splits(names: tuple[str, str, str], tmp_path: Path) -> None:
    rows = images(tmp_path)
    file_of = dict(zip(SPLITS, names, strict=True))
    file_of["val"] = file_of["val"] or names[0]
    text = dict.fromkeys(file_of.values(), "")
    for row in rows:
        text[file_of[row["true"]]] += f"{row['path']} {row['label']}\n"
    for file, content in text.items():
        (tmp_path / file).write_text(content)
    true = {row["path"]: "train" if row["true"] == "val" and not names[1] else row["true"] for row in rows}
    if names[0].endswith(".TXT"):
        (tmp_path / "TRAIN.TXT").rename(tmp_path / "TRAIN.txt")
        (tmp_path / "TEST.TXT").rename(tmp_path / "Test.TXT")
        assert splits(load(tmp_path / "TRAIN.txt")) == true
    else:
        assert splits(load(tmp_path / names[0])) == true


def test_a_manifest_beside_the_training_manifest_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = images(tmp_path)
    write(tmp_path / "Test.csv", [row for row in rows if row["true"] == "test"])
    load(write(tmp_path / "Train.csv", [row for row in rows if row["true"] != "test"]))
    assert "Test.csv is next to" in capsys.readouterr().out


def test_saved_data_sets_may_spell_their_splits(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    picture = {"bytes": encoded(photo(1, 12, 12)), "path": None}
    one = {"image": [picture, picture], "label": [0, 1]}
    made = {name: datasets.Dataset.from_dict(one, features=features) for name in ("training", "valid", "testing")}
    datasets.DatasetDict(made).save_to_disk(tmp_path / "saved")
    source = load(tmp_path / "saved")
    assert {source.images.name(i).split()[0]: SPLITS[k] for i, k in enumerate(source.split_N)} == {
        split: split for split in SPLITS
    }
