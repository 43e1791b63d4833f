"""Image folders as they are found in the wild: which folders are splits, which are classes, and what is asked."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from lfm.config.schema import DataConfig
from lfm.data.decoding import decode
from lfm.data.sources.base import SPLITS, Source
from lfm.data.sources.custom import load_custom
from lfm.errors import InputError
from tests.pictures import encoded, photo


@pytest.fixture(autouse=True)
def _own_home(home: Path) -> None:
    pass


def lay(root: Path, folders: Iterable[str], images: int = 2) -> Path:
    """Each folder with images of its own."""
    for k, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(images):
            (root / folder / f"{k}-{i}.png").write_bytes(encoded(photo(100 * k + i, 12, 12)))
    return root


def load(source: Path, **fields: object) -> Source:
    return load_custom(DataConfig(name="custom", source=str(source), **fields))


def places(source: Source, root: Path) -> set[tuple[str, str, str]]:
    """{(folder of the image from the root, class, split)}."""
    return {
        (str(Path(source.images.name(i)).parent.relative_to(root)), source.classes[label], SPLITS[split])
        for i, (label, split) in enumerate(zip(source.label_N, source.split_N, strict=True))
    }


SPLIT_FOLDERS = [
    {"Training": "train", "Testing": "test"},
    {"seg_train": "train", "seg_test": "test"},
    {"train_images": "train", "test_images": "test"},
    {"TrainImages": "train", "ValImages": "val", "TestImages": "test"},
    {"train": "train", "valid": "val", "test": "test"},
    {"TRAIN": "train", "HOLDOUT": "test"},
    {"train-set": "train", "hold-out": "test"},
    {"trainset": "train", "testset": "test"},
    {"train": "train", "eval": "test"},
    {"train": "train", "eval": "val", "test": "test"},
    {"trainval": "train", "test": "test"},
]


@pytest.mark.parametrize("split_of", SPLIT_FOLDERS, ids=" ".join)
def test_splits_by_another_name_are_splits(
    split_of: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = lay(tmp_path / "root", [f"{split}/{kind}" for split in split_of for kind in ("cat", "dog")])
    source = load(root)
    assert places(source, root) == {
        (f"{folder}/{kind}", kind, split) for folder, split in split_of.items() for kind in ("cat", "dog")
    }
    said = capsys.readouterr().out
    assert all(f"{name} = {split}" in said for name, split in split_of.items())


ASKED = {
    # folders with images, what the message says
    "folds": (
        ["fold1/cat", "fold1/dog", "fold2/cat", "fold2/dog"],
        r"folders fold1, fold2 of \S+ hold folders of the same names \(cat, dog\), so they look like splits or folds",
    ),
    "a fold without one class": (
        ["a/cat", "a/dog", "b/cat", "c/dog"], r"folders a, b, c of \S+ hold folders of the same names \(cat, dog\)"
    ),
    "sites": (["London/benign", "Paris/benign", "Paris/malign"], r"same names \(benign\).*data\.class_depth=2 to put"),
    "parts beside a class": (["part1/cat", "part1/dog", "part2/cat", "part2/dog", "owl"], r"folders part1, part2 of"),
    "classes one level down": (
        ["animals/cat", "animals/dog", "plants/rose"],
        r"folders animals, plants of \S+ hold no images, only folders of images \(cat, dog, rose\); set "
        r"data\.class_depth=2 if those are the classes, or data\.class_depth=1 if animals, plants are",
    ),
    "classes one level down in splits": (
        ["train/animals/cat", "train/plants/rose", "test/animals/cat", "test/plants/rose"],
        r"folders animals, plants of \S+ hold no images, .*data\.class_depth=3 if those are the classes",
    ),
    "splits packed twice": (
        ["seg_train/seg_train/sea", "seg_train/seg_train/ice", "seg_test/seg_test/sea", "seg_test/seg_test/ice"],
        r"folders seg_test, seg_train of \S+ hold no images, only folders of images \(ice, sea\)",
    ),
    "splits and a folder without labels": (
        ["seg_train/sea", "seg_train/ice", "seg_test/sea", "seg_test/ice", "seg_pred"],
        r"has split folders \(seg_test, seg_train\) and others \(seg_pred\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ASKED)
def test_a_doubtful_layout_is_asked_for(case: str, tmp_path: Path) -> None:
    folders, message = ASKED[case]
    with pytest.raises(InputError, match=message):
        load(lay(tmp_path / "root", folders))


def test_the_depth_answers_the_question(tmp_path: Path) -> None:
    root = lay(tmp_path / "folds", ["fold1/cat", "fold1/dog", "fold2/cat", "fold2/dog"], 4)
    assert load(root, class_depth=2).classes == ("cat", "dog")
    assert load(root, class_depth=1).classes == ("fold1", "fold2")
    deep = ["train/animals/cat", "train/plants/rose", "test/animals/cat", "test/plants/rose"]
    root = lay(tmp_path / "deep", deep)
    assert places(load(root, class_depth=3), root) == {(f, f.split("/")[2], f.split("/")[0]) for f in deep}
    assert places(load(root, class_depth=2), root) == {(f, f.split("/")[1], f.split("/")[0]) for f in deep}


def test_folders_that_are_plain_stay_as_they_were(tmp_path: Path) -> None:
    root = lay(tmp_path / "one", ["cat/images", "dog/images"])  # as Tiny ImageNet has them
    assert load(root).classes == ("cat", "dog")
    root = lay(tmp_path / "two", ["cat", "cat/more", "dog", "dog/2020", "owl/2020"])
    assert load(root).classes == ("cat", "dog", "owl")
    root = lay(tmp_path / "three", ["training shoes", "test tubes", "val d'isere"])
    assert load(root).classes == ("test tubes", "training shoes", "val d'isere")


SYSTEM = ("@eaDir", ".thumbnails", "__MACOSX", "lost+found", "#recycle", "$RECYCLE.BIN", ".ipynb_checkpoints")


@pytest.mark.parametrize("place", ["", "train/", "train/cat/"])
@pytest.mark.parametrize("name", SYSTEM)
def test_what_systems_put_there_is_no_class_and_no_image(
    name: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = [f"{split}/{kind}" for split in ("train", "test") for kind in ("cat", "dog")]
    root = lay(tmp_path / "root", plain)
    lay(root, [f"{place}{name}/cat", f"{place}{name}/dog/IMG_1.jpg"])
    for file in ("Thumbs.db", "desktop.ini", "cat/Thumbs.db"):
        (root / "train" / file).write_bytes(b"x")
    (root / "train" / "cat" / "._0.png").write_bytes(b"AppleDouble")
    source = load(root)
    assert places(source, root) == {(f, f.split("/")[1], f.split("/")[0]) for f in plain}
    assert len(source.images) == 8
    said = capsys.readouterr().out
    assert "5 hidden, thumbnail and system entries of" in said
    assert f"{name}: 1" in said
    assert "Thumbs.db: 2" in said


@pytest.mark.parametrize("ending", [".jfif", ".jpe", ".JPE", ".avif", ".jp2", ".pnm"])
def test_all_that_can_be_read_are_images(ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind = {".jp2": "jpeg2000", ".avif": "avif", ".pnm": "ppm"}.get(ending.lower(), "jpeg")
    root = lay(tmp_path / "root", ["cat", "dog"], 3)
    for folder in ("cat", "dog"):
        (root / folder / f"new{ending}").write_bytes(encoded(photo(len(folder) + ord(folder[0]), 16, 16), kind))
        (root / folder / "no.heic").write_bytes(b"x")
    (root / "dog" / "notes.txt").write_bytes(b"x")
    source = load(root)
    new = [i for i in range(len(source.images)) if source.images.name(i).endswith(ending)]
    assert len(new) == 2
    for i in new:
        assert decode(source.images.read(i), "new", 1).size == (16, 16)
    assert "3 files of" in (said := capsys.readouterr().out)
    assert "(.heic: 2, .txt: 1)" in said
