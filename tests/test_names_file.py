"""Class names and labels as people write them: each image keeps its class, or the user is asked."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lfm.config.schema import DataConfig
from lfm.data.sources.base import Source
from lfm.data.sources.class_names import named
from lfm.data.sources.custom import load_custom
from lfm.errors import InputError
from tests.pictures import encoded, photo


@pytest.fixture(autouse=True)
def _own_home(home: Path) -> None:
    pass


def folders(root: Path, names: Sequence[str], images: int = 3) -> Path:
    for k, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(images):
            (root / name / f"{i}.png").write_bytes(encoded(photo(100 * k + i, 12, 12)))
    return root


def load(source: Path, **fields: object) -> Source:
    return load_custom(DataConfig(name="custom", source=str(source), **fields))


def names_of_folders(source: Source) -> dict[str, str]:
    """Folder -> the name that its images got, each folder having one."""
    pairs = {(Path(source.images.name(i)).parent.name, source.classes[k]) for i, k in enumerate(source.label_N)}
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


PETS = ("bird", "cat", "dog")
WORDNET = ("n01440764", "n01443537", "n02123045")
RIGHT: dict[str, tuple[Sequence[str], str, str, dict[str, str]]] = {
    # folders, name of the file, its text, the name that each folder's images must have
    "another order": (PETS, "n.txt", "dog\ncat\nbird\n", {"bird": "bird", "cat": "cat", "dog": "dog"}),
    "another order and spelling": (
        ("great_owl", "red_panda", "zebra"), "n.txt", "Zebras\nRed Panda\nGreat Owl\n",
        {"great_owl": "Great Owl", "red_panda": "Red Panda", "zebra": "Zebras"},
    ),
    "cleaned of numbers, in another order": (
        ("001.Black_footed_Albatross", "002.Laysan_Albatross"), "n.txt", "Laysan Albatross\nBlack footed Albatross\n",
        {"001.Black_footed_Albatross": "Black footed Albatross", "002.Laysan_Albatross": "Laysan Albatross"},
    ),
    "camels parted, in another order": (
        ("AnnualCrop", "SeaLake"), "n.txt", "Sea Lake\nannual crop\n",
        {"AnnualCrop": "annual crop", "SeaLake": "Sea Lake"},
    ),
    "numbered": (PETS, "n.txt", "0 a bird\n1 a cat\n2 a dog\n", {"bird": "a bird", "cat": "a cat", "dog": "a dog"}),
    "numbered in another order": (
        PETS, "n.txt", "2: a dog\n0: a bird\n1: a cat\n", {"bird": "a bird", "cat": "a cat", "dog": "a dog"}
    ),
    "numbered after the name": (
        PETS, "n.tsv", "a dog\t2\na bird\t0\na cat\t1\n", {"bird": "a bird", "cat": "a cat", "dog": "a dog"}
    ),
    "a table with a head": (
        PETS, "n.csv", "id,name\n1,a cat\n0,a bird\n2,a dog\n", {"bird": "a bird", "cat": "a cat", "dog": "a dog"}
    ),
    "numbered in another order by other names": (
        PETS, "n.txt", "0 dog\n1 bird\n2 cat\n", {"bird": "bird", "cat": "cat", "dog": "dog"}
    ),
    "ImageNet's ids": (
        WORDNET, "n.txt", "n02123045 tabby, tabby cat\nn01440764 tench, Tinca tinca\nn01443537 goldfish\n",
        {"n01440764": "tench, Tinca tinca", "n01443537": "goldfish", "n02123045": "tabby, tabby cat"},
    ),
    "ImageNet's ids, more than there are": (
        WORDNET[:2], "n.txt", "n02123045 tabby\nn01440764 tench\nn01443537 goldfish\n",
        {"n01440764": "tench", "n01443537": "goldfish"},
    ),
    "id2label in another order": (
        PETS, "config.json", json.dumps({"id2label": {"0": "dog", "1": "bird", "2": "cat"}, "layers": 12}),
        {"bird": "bird", "cat": "cat", "dog": "dog"},
    ),
    "label2id": (PETS, "n.json", '{"dog": 0, "bird": 1, "cat": 2}', {"bird": "bird", "cat": "cat", "dog": "dog"}),
    "label2id from one": (PETS, "n", '{"dog": 1, "bird": 2, "cat": 3}', {"bird": "bird", "cat": "cat", "dog": "dog"}),
    "by place": (PETS, "n.txt", "hen\ntabby\nhound\n", {"bird": "hen", "cat": "tabby", "dog": "hound"}),
    "numbers of planes are names": (
        ("a", "b"), "n.txt", "boeing 737\nboeing 747\n", {"a": "boeing 737", "b": "boeing 747"}
    ),
    "folders that are numbers": (
        ("0", "1", "2", "10"), "n.txt", "zero\none\ntwo\nten\n", {"0": "zero", "1": "one", "2": "two", "10": "ten"}
    ),
    "folders that are fractions of nothing": (
        ("0.0", "1.0", "10.0", "2.0"), "n.txt", "zero\none\ntwo\nten\n",
        {"0.0": "zero", "1.0": "one", "2.0": "two", "10.0": "ten"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RIGHT)
def test_each_folder_gets_its_name(case: str, tmp_path: Path) -> None:
    names, file, text, right = RIGHT[case]
    (tmp_path / file).write_text(text)
    source = load(folders(tmp_path / "root", names), class_names=str(tmp_path / file))
    assert names_of_folders(source) == right


DOUBT: dict[str, tuple[Sequence[str], str, str]] = {
    # folders, text of the file, what the message says
    "half of the names, at other places": (
        PETS, "dog\nhen\ntabby\n", r"line 1 of \S+, 'dog', would name the label 'bird', but fits 'dog'; .*write JSON"
    ),
    "more words, at other places": (
        PETS, "old dog\nwild bird\ntabby cat\n", r"line 1 of \S+, 'old dog', would name the label 'bird'"
    ),
    "folders sorted as text": (
        ("class_1", "class_10", "class_2"), "one\ntwo\nten\n",
        r"depends on how they are sorted \(as text: class_1, class_10, class_2; as people count: class_1, class_2, cl",
    ),
    "folders sorted with regard to case": (
        ("Dog", "cat"), "hound\ntabby\n", r"depends on how they are sorted \(as text: Dog, cat"
    ),
    "other numbers": (PETS, '{"bird": 5, "cat": 7, "dog": 9}', r"not a JSON object of strings; give a line a class"),
    "a label twice": (PETS, '{"bird": "a", "cat": "b", "dog": "c", "cat": "d"}', r"a key stands in it twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", DOUBT)
def test_doubtful_names_are_asked_for(case: str, tmp_path: Path) -> None:
    names, text, message = DOUBT[case]
    (tmp_path / "n").write_text(text)
    with pytest.raises(InputError, match=message):
        load(folders(tmp_path / "root", names), class_names=str(tmp_path / "n"))


def test_names_by_number_that_the_folders_contradict_are_refused(tmp_path: Path) -> None:
    root = folders(tmp_path / "root", PETS)
    lines = "".join(f"{name}/{i}.png {k}\n" for k, name in enumerate(PETS) for i in range(3))
    (root / "all.txt").write_text(lines)
    (tmp_path / "n").write_text("dog\ncat\nbird\n")
    with pytest.raises(InputError, match=r"calls label 0 'dog', but all its images lie in a folder .* 'bird' as lab"):
        load(root / "all.txt", class_names=str(tmp_path / "n"))
    (tmp_path / "n").write_text("bird\ncat\ndog\n")
    assert names_of_folders(load(root / "all.txt", class_names=str(tmp_path / "n")))["dog"] == "dog"


def test_what_lines_were_taken_for_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folders(tmp_path / "root", PETS)
    for text, said in (
        ("2 hound\n0 hen\n1 tabby\n", "read as label and name: 2 = hound, 0 = hen, 1 = tabby"),
        ("hen\ntabby\nhound\n", "names the labels by place: bird = hen, cat = tabby, dog = hound"),
        ("dog\nbird\ncat\n", "names the labels in another order: matched by name"),
    ):
        (tmp_path / "n").write_text(text)
        load(root, class_names=str(tmp_path / "n"))
        assert said in capsys.readouterr().out


def test_published_names_in_another_order_are_matched_too(tmp_path: Path) -> None:
    (tmp_path / "n").write_text("Sneaker\nT-shirts/Top\nankle boot\n")
    config = DataConfig(class_names=str(tmp_path / "n"))
    assert named(config, ["t-shirt/top", "ankle boot", "sneaker"]) == ("T-shirts/Top", "ankle boot", "Sneaker")


# Labels that are numbers

SPELLINGS: dict[str, Callable[[int], str]] = {
    "0.0": "{}.0".format,
    "00": "{:02d}".format,
    "+0": "+{}".format,
    "0.": "{}.".format,
    "numpy.savetxt": lambda k: f"{float(k):.18e}",
    "mixed": lambda k: f"{k}.0" if k % 2 else str(k),
}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt", ".jsonl"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_whole_numbers_however_written_are_numbers(spelling: str, suffix: str, tmp_path: Path) -> None:
    names = [f"kind {chr(97 + 7 * k % 11)}" for k in range(11)]  # not in alphabetical order
    root = folders(tmp_path / "root", [f"f{k}" for k in range(11)], images=2)
    rows = [(f"f{k}/{i}.png", SPELLINGS[spelling](k)) for k in range(11) for i in range(2)]
    text = {
        ".txt": "".join(f"{path} {label}\n" for path, label in rows),
        ".csv": "path,label\n" + "".join(f"{path},{label}\n" for path, label in rows),
        ".tsv": "path\tlabel\n" + "".join(f"{path}\t{label}\n" for path, label in rows),
        ".jsonl": "".join(json.dumps({"path": path, "label": label}) + "\n" for path, label in rows),
    }[suffix]
    (root / f"all{suffix}").write_text(text)
    (tmp_path / "n").write_text("\n".join(names))
    source = load(root / f"all{suffix}", class_names=str(tmp_path / "n"))
    assert names_of_folders(source) == {f"f{k}": names[k] for k in range(11)}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_numbers_that_pandas_made_floats(suffix: str, tmp_path: Path) -> None:
    root = folders(tmp_path / "root", [f"f{k}" for k in range(11)], images=2)
    frame = pd.DataFrame({"path": [f"f{k}/{i}.png" for k in range(11) for i in range(2)]})
    frame["label"] = np.repeat(np.arange(11.0), 2)
    if suffix == ".parquet":
        frame.to_parquet(root / "m.parquet")
    else:
        (root / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in frame.to_dict("records")))
    assert names_of_folders(load(root / f"m{suffix}")) == {f"f{k}": f"f{k}" for k in range(11)}


def test_fractions_are_no_classes(tmp_path: Path) -> None:
    root = folders(tmp_path / "root", PETS)
    (root / "m.csv").write_text("path,label\nbird/0.png,0.0\ncat/0.png,1.0\ndog/0.png,1.5\n")
    with pytest.raises(InputError, match=r"m\.csv row 4: label '1\.5' is no whole number; number the classes from 0"):
        load(root / "m.csv")
