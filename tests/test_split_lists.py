"""Split lists: their rows, what is on the disk, and the published totals."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfm.config.schema import DataConfig
from lfm.data.sources.base import SPLITS, Source
from lfm.data.sources.fingerprint import fingerprint
from lfm.data.sources.inaturalist import load_inaturalist2018
from lfm.data.sources.split_lists import load_imagenet_lt, load_places_lt, read_list
from lfm.errors import InputError
from tests.split_list_files import S3, Loader, Rows, images, touch, write_list


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    rows=st.lists(st.tuples(images, st.integers(0, 10**9 - 1)), min_size=1, unique_by=lambda row: row[0]),
    end=st.sampled_from(["\n", "\r\n", "\n\n", "\n  \n"]),
    gap=st.sampled_from([" ", "\t", "   "]),
    mark=st.sampled_from(["", "\ufeff"]),
)
def test_a_list_gives_back_its_rows(
    rows: Rows, end: str, gap: str, mark: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "list.txt"
    path.write_bytes((mark + "".join(f"{image}{gap}{label}{end}" for image, label in rows)).encode())
    paths, label_N = read_list(path)
    assert list(zip(paths, label_N.tolist(), strict=True)) == rows
    assert label_N.dtype == np.int64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg 0\nb.jpg one\n", r"list\.txt:2: 'b\.jpg one': label 'one' is not a whole number.*write"),
        ("a.jpg 1.0\n", r":1: 'a\.jpg 1\.0': label '1\.0' is not a whole number"),
        ("a.jpg 1_0\n", "not a whole number"),
        ("a.jpg ٣\n", "not a whole number"),
        ("a.jpg +3\n", "not a whole number"),
        ("a.jpg 99999999999999999999\n", "not a whole number of at most nine digits"),
        ("\n\na.jpg -1\n", r":3: 'a\.jpg -1': label -1 is negative; number the classes from 0"),
        ("a.jpg\n", r":1: 'a\.jpg': a line needs a path and a label; write 'path label'"),
        ("a.jpg 0\n 7\n", r":2: '7': a line needs a path"),
        ("a.jpg 0\nb.jpg 1\na.jpg 1\n", r":3: 'a\.jpg 1': the same path stands in line 1; delete one"),
        ("", r"list\.txt lists no image"),
        ("\n \n", r"list\.txt lists no image"),
    ],
)
def test_a_wrong_line_is_named_with_the_rule(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_list(path)


def test_a_list_that_is_not_text_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"a.jpg 0\n\xff.jpg 1\n")
    with pytest.raises(InputError, match=r"list\.txt:2: byte 8 is not UTF-8; save"):
        read_list(path)
    with pytest.raises(InputError, match=r"nowhere cannot be read \(No such file"):
        read_list(tmp_path / "nowhere")
    with pytest.raises(InputError, match="cannot be read"):
        read_list(tmp_path)


# --- what is on the disk ---


def age(path: Path, seconds: int) -> None:
    os.utime(path, ns=(0, 1_700_000_000_000_000_000 + seconds * 10**9))


def test_the_fingerprint_changes_with_what_matters_and_nothing_else(tmp_path: Path) -> None:
    names = ["a/1.jpg", "a/2.jpg", "b/c/3 3.jpg"]

    def tree(root: Path) -> str:
        touch(root, *names, "a/not listed.jpg")
        for name in names:
            age(root / name, 0)
        return str(root)

    root, list_ = tree(tmp_path / "here"), tmp_path / "list.txt"
    list_.write_text("1")
    first = fingerprint(root, names, [list_])
    assert first == fingerprint(root, names, [list_]) == fingerprint(tree(tmp_path / "there"), names, [list_])
    assert first == fingerprint(f"{root}/", names, [list_])
    found = {first, fingerprint(root, names[::-1], [list_]), fingerprint(root, names[:2], [list_])}
    (Path(root) / "a/not listed.jpg").write_bytes(b"something else")
    assert fingerprint(root, names, [list_]) == first
    age(Path(root) / names[2], 1)
    found.add(fingerprint(root, names, [list_]))
    age(Path(root) / names[2], 0)
    assert fingerprint(root, names, [list_]) == first
    (Path(root) / names[0]).write_bytes(b"longer than before")
    age(Path(root) / names[0], 0)
    found.add(fingerprint(root, names, [list_]))
    (Path(root) / names[0]).rename(Path(root) / "aside")
    (Path(root) / names[0]).symlink_to(Path(root) / "aside")  # a link counts as what it points to
    found.add(linked := fingerprint(root, names, [list_]))
    list_.write_text("2")
    found.add(fingerprint(root, names, [list_]))
    assert len(found) == 6 and linked in found
    assert fingerprint(S3, names) != fingerprint(f"{S3}2", names)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    listed=st.lists(st.sampled_from([f"{a}/{b}" for a in "xyz" for b in "12345"]), min_size=1, unique=True),
    there=st.sets(st.sampled_from([f"{a}/{b}" for a in "xyz" for b in "12345"])),
)
def test_missing_images_are_counted_and_five_named(
    listed: list[str], there: set[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("tree")
    touch(root, *there)
    (root / "x/1.d").mkdir(parents=True)
    (root / "x/dangling").symlink_to(root / "nowhere")
    listed = [*listed, "x/1.d", "x/dangling"]  # a folder and a broken link are no images
    missing = [name for name in listed if not (root / name).is_file()]
    with pytest.raises(InputError) as error:
        fingerprint(str(root), listed)
    message = str(error.value)
    assert message.startswith(f"{len(missing)} of {len(listed)} listed images are missing: {root}/{missing[0]}")
    assert [name for name in missing if f"{root}/{name}," in f"{message},".replace(" ...", ",").replace(";", ",")] == (
        missing[:5]
    )
    assert "set data.images" in message


def test_absolute_and_remote_paths_in_a_list_stand_for_themselves(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    fingerprint(S3, [str(tmp_path / "a.jpg"), "s3://other/b.jpg", "c.jpg"])
    with pytest.raises(InputError, match=rf"1 of 3 listed images is missing: {tmp_path}/b\.jpg;"):
        fingerprint(S3, [str(tmp_path / "b.jpg"), "s3://other/b.jpg", "c.jpg"])


# --- the published totals ---


def long_tail(classes: int, total: int, fewest: int, most: int) -> list[int]:
    """Any counts with these totals."""
    counts = [most] + [fewest] * (classes - 1)
    for k in range(1, classes - 1):
        counts[k] += min(most - fewest, total - sum(counts))
    assert (sum(counts), min(counts), max(counts)) == (total, fewest, most)
    return counts


def rows_of(counts: list[int], form: str) -> Rows:
    return [(form.format(k=k, i=i), k) for k, count in enumerate(counts) for i in range(count)]


def write_imagenet(folder: Path) -> None:
    write_list(folder / "ImageNet_LT_train.txt", rows_of(long_tail(1000, 115_846, 5, 1280), "train/n{k}/t{i}.JPEG"))
    write_list(folder / "ImageNet_LT_val.txt", rows_of([20] * 1000, "train/n{k}/v{i}.JPEG"))
    write_list(folder / "ImageNet_LT_test.txt", rows_of([50] * 1000, "val/n{k}/{i}.JPEG"))


def write_places(folder: Path) -> None:
    write_list(
        folder / "Places_LT_train.txt", rows_of(long_tail(365, 62_500, 5, 4980), "data_256/s/scene_{k}/t{i}.jpg")
    )
    write_list(folder / "Places_LT_val.txt", rows_of([20] * 365, "data_256/s/scene_{k}/v{i}.jpg"))
    write_list(folder / "Places_LT_test.txt", rows_of([100] * 365, "val_256/{k}_{i}.jpg"))


def write_inaturalist(folder: Path) -> None:
    names = ",".join(f'{{"id": {k}, "name": "Species {k}"}}' for k in range(8142))
    for file, counts in (("train2018", long_tail(8142, 437_513, 2, 1000)), ("val2018", [3] * 8142)):
        category = np.repeat(np.arange(8142), counts).tolist()
        images = ",".join([f'{{"id":{i},"file_name":"{file}/{i}.jpg"}}' for i in range(len(category))])
        labels = ",".join([f'{{"image_id":{i},"category_id":{k}}}' for i, k in enumerate(category)])
        text = f'{{"images":[{images}],"annotations":[{labels}],"categories":[{names}]}}'
        (folder / f"{file}.json").write_text(text)


def sizes(source: Source) -> dict[str, int]:
    return {SPLITS[k]: n for k, n in Counter(source.split_N.tolist()).items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loader", "write", "expected", "classes"),
    [
        (load_imagenet_lt, write_imagenet, {"train": 115_846, "val": 20_000, "test": 50_000}, 1000),
        (load_places_lt, write_places, {"train": 62_500, "val": 7300, "test": 36_500}, 365),
        (load_inaturalist2018, write_inaturalist, {"train": 437_513, "test": 24_426}, 8142),
    ],
)
def test_the_published_totals_pass(
    loader: Loader, write: Callable[[Path], None], expected: dict[str, int], classes: int, tmp_path: Path
) -> None:
    write(tmp_path)
    source = loader(DataConfig(source=str(tmp_path), images=S3))
    source.check()
    assert sizes(source) == expected and len(source.classes) == classes
    assert source.equal_names == (loader is load_imagenet_lt)
    first = source.images.name(0)
    assert first.startswith(f"{S3}/") and source.label_N[0] == 0


def drop(rows: Rows) -> Rows:
    return rows[:-1]


def move(rows: Rows) -> Rows:
    """One image of the first class becomes one of the last."""
    return [(rows[0][0], rows[-1][1]), *rows[1:]]


def shift(rows: Rows) -> Rows:
    """Classes from 1, as some tools number them."""
    return [(image, label + 1) for image, label in rows]


@pytest.mark.parametrize(
    ("damage", "split"),
    [(drop, "train"), (shift, "train"), (drop, "val"), (move, "val"), (move, "test"), (shift, "test")],
)
def test_a_list_with_other_counts_is_refused(damage: Callable[[Rows], Rows], split: str, tmp_path: Path) -> None:
    write_places(tmp_path)
    path = tmp_path / f"Places_LT_{split}.txt"
    write_list(path, damage(list(zip(*(list(column) for column in read_list(path)), strict=True))))
    config = DataConfig(source=str(tmp_path), images=S3)
    with pytest.raises(
        InputError, match=rf"{path.name} has [0-9,]+ images.*the published one has .*data\.verify=false"
    ):
        load_places_lt(config)
    if damage is drop:
        assert sum(sizes(load_places_lt(config.model_copy(update={"verify": False}))).values()) == 106_299
