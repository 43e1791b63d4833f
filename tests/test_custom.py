"""Images of one's own, every kind of source on disk and in S3 (over 300 lines: all put there in one way)."""

import csv
import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lfm.config.schema import DataConfig
from lfm.data.artifact import judge, write
from lfm.data.sources.base import SPLITS, TEST, Source
from lfm.data.sources.custom import load_custom
from lfm.data.sources.test_split import choose_test
from lfm.errors import InputError
from lfm.storage import s3
from tests.s3 import S3

Files = dict[str, bytes]
Rows = list[tuple[str, str, str]]
Put = Callable[[Files], str]


@pytest.fixture(scope="module", autouse=True)
def home_of_the_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Digests are kept in the store: not in the developer's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LFM_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def image(name: str, content: int | None = None) -> bytes:
    """A real image in the format of its ending, its pixels drawn from the name or from `content`."""
    seed = hashlib.sha256(str(name if content is None else content).encode()).digest()
    pixels = np.frombuffer(seed * 6, np.uint8)[:192].reshape(8, 8, 3)
    kind = {".jpg": "jpeg", ".jpeg": "jpeg", ".tif": "tiff", ".pgm": "ppm"}.get(Path(name).suffix.lower())
    out = io.BytesIO()
    grey = Path(name).suffix.lower() == ".pgm"
    Image.fromarray(pixels[..., 0] if grey else pixels).save(out, kind or Path(name).suffix[1:].lower())
    return out.getvalue()


def put_on_disk(root: Path, files: Files) -> str:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(root)


@pytest.fixture(params=["disk", "s3"])
def put(request: pytest.FixtureRequest, tmp_path: Path) -> Put:
    """Lay files down; the folder that they lie in."""
    if request.param == "disk":
        return lambda files: put_on_disk(tmp_path / "root", files)
    put_in_s3: Put = request.getfixturevalue("put_in_s3")
    return put_in_s3


@pytest.fixture
def put_in_s3(s3: S3, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Put:
    s3.use(monkeypatch)
    bucket = "c-" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    s3.client().create_bucket(Bucket=bucket)

    def put(files: Files) -> str:
        for name, content in files.items():
            s3.client().put_object(Bucket=bucket, Key=f"root/{name}", Body=content)
        return f"s3://{bucket}/root"

    return put


def load(source: str, **fields: object) -> Source:
    return load_custom(DataConfig(name="custom", source=source, **fields))


def rows(source: Source, root: str) -> set[tuple[str, str, str]]:
    """{(path from the root, class name, split)}, after each image was read and found to be one."""
    result = set()
    for i in range(len(source.images)):
        Image.open(io.BytesIO(source.images.read(i))).load()
        name = source.images.name(i).removeprefix(f"{root}/")
        result.add((name, source.classes[source.label_N[i]], (*SPLITS, "nowhere")[source.split_N[i]]))
    assert len(result) == len(source.images)
    return result


def images_of(table: Rows) -> Files:
    return {path: image(path) for path, _, _ in table}


# Three splits, two classes, deep folders, capital endings.
TABLE: Rows = [
    ("train/a_cat/1.png", "a cat", "train"), ("train/a_cat/deep/er/2.JPG", "a cat", "train"),
    ("train/a_cat/9.tif", "a cat", "train"), ("train/dog/ä 1.jpeg", "dog", "train"),
    ("train/dog/x.webp", "dog", "train"), ("validation/dog/1.bmp", "dog", "val"),
    ("test/a_cat/1.gif", "a cat", "test"), ("test/dog/1.PPM", "dog", "test"), ("test/dog/2.pgm", "dog", "test"),
]  # fmt: skip
SHALLOW = [row for row in TABLE if "deep" not in row[0]]  # the folder of each image is its class


# Image folders


def test_split_folders(put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    extra = {"train/dog/notes.txt": b"n", "train/dog/.hidden.png": b"h", ".git/x.png": b"h", "README": b"r",
             "loose.png": image("l.png"), "train/loose.png": image("m.png")}  # fmt: skip
    root = put(images_of(TABLE) | extra)
    source = load(root)
    assert rows(source, root) == set(TABLE)
    assert source.classes == ("a cat", "dog")
    said = capsys.readouterr().out
    assert f"2 files of {root} are not images" in said
    assert f"2 images of {root} lie outside of class folders" in said
    assert "9 images of 2 classes" in said
    assert "5 train, 1 val, 3 test" in said
    assert rows(load(root + "/"), root) == set(TABLE)


def test_class_folders_get_a_test_split(put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{kind}/{i}.png" for kind in ("train", "b", "a") for i in range(4)]
    root = put({name: image(name) for name in names})  # a class may be called train
    source = load(root)
    assert source.classes == ("a", "b", "train")
    found = rows(source, root)
    assert {(path, kind) for path, kind, _ in found} == {(name, name.split("/")[0]) for name in names}
    chosen = {min((name for name in names if name.startswith(kind)), key=lambda n: hashlib.sha256(image(n)).digest())
              for kind in ("train/", "b/", "a/")}  # fmt: skip
    assert {path for path, _, split in found if split == "test"} == chosen
    below = {name for name in names if hashlib.sha256(image(name)).digest()[0] < 0.2 * 256}
    assert {path for path, _, split in found if split == "nowhere"} == below - chosen
    said = capsys.readouterr().out
    assert "images chosen by their content are one now (1 a class)" in said and "1 test image a class makes" in said
    spare = f"{len(below - chosen):,} more images of larger classes are neither trained on nor scored"
    assert (spare in said) == bool(below - chosen)


def test_number_folders_are_in_the_order_of_numbers(put: Put, tmp_path: Path) -> None:
    root = put({f"{split}/{k}/{k}.png": image(f"{split}{k}.png") for k in range(12) for split in ("train", "test")})
    source = load(root)
    assert source.classes == tuple(map(str, range(12)))
    names = tmp_path / "names.txt"
    names.write_text("".join(f"class {k}\n" for k in range(12)))
    source = load(root, class_names=str(names))
    for i in range(len(source.images)):
        number = int(source.images.name(i).split("/")[-2])
        assert source.label_N[i] == number
        assert source.classes[number] == f"class {number}"


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = tmp_path / "root"
    put_on_disk(root, {f"{kind}/{i}.png": image(f"{kind}{i}.png") for kind in "ab" for i in range(3)})
    put_on_disk(tmp_path / "elsewhere", {f"{i}.png": image(f"c{i}.png") for i in range(3)})
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "circle").symlink_to(root)
    (root / "b" / "self").symlink_to(root / "b")
    found = rows(load(str(root)), str(root))
    assert {(path, kind) for path, kind, _ in found} == {(f"{kind}/{i}.png", kind) for kind in "abc" for i in range(3)}


# Split lists


@pytest.mark.parametrize("labels", ["numbers", "words"])
@pytest.mark.parametrize("list_name", ["my_train.txt", "train_list.txt"])
def test_split_lists(put: Put, labels: str, list_name: str) -> None:
    table = SHALLOW if labels == "numbers" else TABLE
    number = {"a cat": 0, "dog": 1}
    text = dict.fromkeys(SPLITS, "\n")
    for path, kind, split in table:
        text[split] += f"{path}\t {number[kind] if labels == 'numbers' else kind.replace(' ', '_')} \r\n\n"
    lists = {list_name.replace("train", split): text[split].encode() for split in SPLITS}
    root = put(images_of(table) | lists)
    source = load(f"{root}/{list_name}")
    assert rows(source, root) == set(table)
    assert source.classes == ("a cat", "dog")


def test_a_single_list_gets_a_test_split_and_names_from_a_file(put: Put, tmp_path: Path) -> None:
    files = {f"flat{i}.png": image(f"{i}.png") for i in range(12)}
    text = "".join(f"flat{i}.png {i % 3}\n" for i in range(12)).encode()
    root = put(files | {"all.txt": text, "names.txt": b"red panda\nowl\nfox\n\n"})
    source = load(f"{root}/all.txt", class_names=f"{root}/names.txt", test_per_class=2)
    names = ["red panda", "owl", "fox"]
    assert {(p, k) for p, k, _ in rows(source, root)} == {(f"flat{i}.png", names[i % 3]) for i in range(12)}
    assert Counter(k for _, k, s in rows(source, root) if s == "test") == dict.fromkeys(names, 2)


# Manifests


def manifest(suffix: str, table: Sequence[Mapping[str, object]]) -> bytes:
    """The rows in this format, written by pandas, csv and json: not by what reads them."""
    if suffix == ".parquet":
        out = io.BytesIO()
        pd.DataFrame(table).to_parquet(out)
        return out.getvalue()
    if suffix == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in table).encode()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), dialect="excel-tab" if suffix == ".tsv" else "excel")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue().encode("utf-8-sig")


SPELLING = {"train": "Train", "val": "VALIDATION", "test": "test"}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_manifests(put: Put, suffix: str) -> None:
    table = [{"other": 1, "path": p, "label": k, "split": SPELLING[s]} for p, k, s in TABLE]
    root = put(images_of(TABLE) | {f"list{suffix}": manifest(suffix, table)})
    source = load(f"{root}/list{suffix}")
    assert rows(source, root) == set(TABLE)
    assert source.classes == ("a cat", "dog")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_manifests_with_numbers_and_other_column_names(suffix: str, tmp_path: Path) -> None:
    table = [{"image": p, "class": int(k == "dog"), "split": s} for p, k, s in SHALLOW]
    root = put_on_disk(tmp_path / "images", images_of(SHALLOW))
    file = tmp_path / f"list{suffix}"
    file.write_bytes(manifest(suffix, table))
    assert rows(load(str(file), images=root), root) == set(SHALLOW)  # the folders name the classes
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"1": "hound", "0": "tabby"}))
    source = load(str(file), images=root, class_names=str(names))
    assert rows(source, root) == {(p, {"a cat": "tabby", "dog": "hound"}[k], s) for p, k, s in SHALLOW}


def test_categories_and_names_for_them(tmp_path: Path) -> None:
    frame = pd.DataFrame(TABLE, columns=["file", "label", "split"]).astype({"label": "category", "split": "category"})
    root = put_on_disk(tmp_path / "root", images_of(TABLE))
    frame.to_parquet(f"{root}/m.parquet")
    (tmp_path / "n.json").write_text(json.dumps({"dog": "a hound", "a cat": "a tabby"}))
    assert load(f"{root}/m.parquet").classes == ("a cat", "dog")
    assert load(f"{root}/m.parquet", class_names=str(tmp_path / "n.json")).classes == ("a tabby", "a hound")


def test_text_of_a_csv_stays_as_it_is(tmp_path: Path) -> None:
    labels = ["null", "NA", "001a", "true", "1e5", ""]
    files = {f"{i}{j}.png": image(f"{i}{j}.png") for i in range(5) for j in range(2)}
    text = "path,label\n" + "".join(f"{i}{j}.png,{labels[i]}\n" for i in range(5) for j in range(2))
    root = put_on_disk(tmp_path / "root", files | {"m.csv": text.encode()})
    assert load(f"{root}/m.csv").classes == ("001a", "1e5", "NA", "null", "true")


@pytest.mark.parametrize("manifest_in", ["disk", "s3"])
def test_a_manifest_may_mix_addresses(manifest_in: str, put_in_s3: Put, tmp_path: Path) -> None:
    local = put_on_disk(tmp_path / "here", images_of(TABLE[:4]))
    remote = put_in_s3(images_of(TABLE[4:]))
    table = [{"uri": f"{local if i < 4 else remote}/{p}", "label": k, "split": s} for i, (p, k, s) in enumerate(TABLE)]
    content = manifest(".csv", table)
    if manifest_in == "disk":
        (tmp_path / "m.csv").write_bytes(content)
        source = load(str(tmp_path / "m.csv"))
    else:
        s3.write(f"{remote}/m.csv", content)
        source = load(f"{remote}/m.csv")
    assert {(p.removeprefix(f"{local}/").removeprefix(f"{remote}/"), k, s) for p, k, s in rows(source, "-")} == set(
        TABLE
    )
    relative = [{"path": p, "label": k, "split": s} for p, k, s in TABLE]
    put_in_s3(images_of(TABLE))
    (tmp_path / "r.csv").write_bytes(manifest(".csv", relative))
    assert rows(load(str(tmp_path / "r.csv"), images=remote), remote) == set(TABLE)


# Checksum


def test_the_checksum_follows_what_matters(tmp_path: Path) -> None:
    files = {f"{kind}/{i}.png": image(f"{kind}{i}.png") for kind in "ab" for i in range(4)}
    table = [{"path": name, "label": name[0]} for name in files]

    def lay(name: str, labels: Sequence[Mapping[str, object]]) -> str:
        root = put_on_disk(tmp_path / name, files | {"m.csv": manifest(".csv", labels)})
        for path in Path(root).rglob("*.png"):
            os.utime(path, ns=(10**18, 10**18))
        return f"{root}/m.csv"

    first = load(lay("one", table)).checksum
    assert load(lay("two", table)).checksum == first, "where the data lie does not matter"
    (tmp_path / "names").write_text("x\ny\n")
    swapped = [{**row, "label": {"a/1.png": "b", "b/1.png": "a"}.get(row["path"], row["label"])} for row in table]
    different = [
        load(lay("three", swapped)).checksum,
        load(lay("four", [*table[1:], table[0]])).checksum,
        load(lay("one", table), class_names=str(tmp_path / "names")).checksum,
    ]
    os.utime(tmp_path / "two" / "a" / "0.png", ns=(10**18, 10**18 + 1))
    different.append(load(str(tmp_path / "two" / "m.csv")).checksum)
    assert load(lay("one", table), test_per_class=2).checksum == first, "a made split follows from the rest"
    assert len({first, *different}) == 5
    folder = load(str(tmp_path / "one")).checksum
    assert load(str(tmp_path / "three")).checksum == folder
    assert load(str(tmp_path / "two")).checksum != folder


def test_the_checksum_follows_objects(put_in_s3: Put) -> None:
    names = [f"{split}/{kind}/0.bmp" for split in ("train", "test") for kind in "ab"]
    first = load(put_in_s3({name: image(name) for name in names})).checksum
    assert load(put_in_s3({})).checksum == first
    other = image("other.bmp")
    assert len(other) == len(image(names[0])), "the ETag alone tells the two apart"
    assert load(put_in_s3({names[0]: other})).checksum != first


# The test split that is made


def test_semicolons_in_names_are_no_separators(put: Put) -> None:
    table = b"path,label,note;kind\na/1.png,a;b,x\na/2.png,c,y\na/3.png,a;b,\na/4.png,c,\n"
    root = put({f"a/{k}.png": image(f"{k}.png") for k in range(1, 5)} | {"m.csv": table})
    assert load(f"{root}/m.csv").classes == ("a;b", "c")


def test_a_damaged_image_is_not_the_only_test_image_of_its_class(tmp_path: Path) -> None:
    """Of nine images of a class one is tested, that of the lowest hash; where it is damaged the next one is."""
    files = {f"{name}/{k}.png": image(f"{name}{k}.png") for name in ("a", "b") for k in range(9)}
    source = load(put_on_disk(tmp_path / "whole", files))
    (first,) = [source.images.name(int(i)) for i in np.flatnonzero((source.split_N == TEST) & (source.label_N == 0))]
    broken, k = b"", 0
    while not broken or hashlib.sha256(broken).digest() > hashlib.sha256(Path(first).read_bytes()).digest():
        broken, k = image("torn.png", k)[:40] + str(k).encode(), k + 1
    root = put_on_disk(tmp_path / "torn", files | {f"a/{Path(first).name}": broken})
    found = load(root)
    tested = {found.images.name(int(i)) for i in np.flatnonzero(found.split_N == TEST)}
    assert f"{root}/a/{Path(first).name}" not in tested and len(tested) == 2
    table = tmp_path / "table"
    table.mkdir()
    config = DataConfig(name="custom", source=root, profile="as-is", on_bad_image="skip", max_bad=0.5)
    write(table, found, config, 0, tmp_path / "work")
    judge(table, config)
    assert np.bincount(np.load(table / "test_labels.npy", allow_pickle=False)).tolist() == [1, 1]


def test_copies_stay_together_in_real_files(put: Put) -> None:
    files = {f"{kind}/{i}.png": image(f"{kind}{i}.png") for kind in "abc" for i in range(10)}
    files |= {f"a/copy{i}.png": files["a/3.png"] for i in range(2)}
    files |= {"b/from_c.png": files["c/1.png"], "c/again.png": files["c/2.png"]}
    root = put(files)
    found = rows(load(root, test_per_class=4), root)
    test = {path for path, _, split in found if split == "test"}
    assert Counter(path[0] for path in test) == {"a": 4, "b": 4, "c": 4}
    outside = {hashlib.sha256(files[path]).hexdigest() for path in files if path not in test}
    assert not outside & {hashlib.sha256(files[path]).hexdigest() for path in test}
    assert not test & {"b/from_c.png", "c/1.png"}
    assert found == rows(load(root, test_per_class=4), root)


def fraction(digest: bytes) -> float:
    """Where the hash lies among all, by an oracle of its hexadecimal digits."""
    return int(digest.hex()[:13], 16) / 16**13


@pytest.mark.parametrize("share", [0.2, 0.05])
@pytest.mark.parametrize("smallest", [2, 9, 24, 500, 900])
def test_its_default_size(smallest: int, share: float) -> None:
    label_N = np.repeat([0, 1], [smallest, 950])
    digests = [hashlib.sha256(bytes([k % 256, k // 256])).digest() for k in range(len(label_N))]
    split_N = choose_test(digests, label_N, np.zeros(len(label_N), np.int8), ["x", "y"], share)
    for k in (0, 1):
        below = sum(fraction(digests[i]) < share for i in np.flatnonzero(label_N == k))
        found = [int((split_N[label_N == k] == split).sum()) for split in range(4)]
        assert found[2] == max(1, min(below, int(smallest * share)))
        assert found[3] == max(0, below - found[2]) and found[0] + found[2] + found[3] == (label_N == k).sum()


# Few different digests, so that many images are copies.
picture = st.tuples(
    st.integers(0, 40).map(lambda n: hashlib.sha256(bytes([n])).digest()),
    st.integers(0, 2),
    st.sampled_from([0, 0, 0, 1]),
)


def choose(data: Sequence[tuple[bytes, int, int]], n: int = 0, share: float = 0.2) -> list[int]:
    digests, labels, splits = zip(*data, strict=True)
    before = np.array(splits, np.int8)
    after = choose_test(digests, np.array(labels), before, ["x", "y", "z"], share, n)
    assert {a for a, b in zip(after, splits, strict=True) if a != b} <= {2, 3}
    assert before.tolist() == list(splits), "the input is left alone"
    return after.tolist()


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(picture, min_size=12, max_size=80), st.integers(0, 5), st.randoms(use_true_random=False))
def test_its_properties(data: list[tuple[bytes, int, int]], n: int, random: object) -> None:
    def free(k: int) -> list[int]:
        """How many copies each image has that class k could give."""
        own = Counter(d for d, label, split in data if (label, split) == (k, 0))
        return [m for d, m in own.items() if all((label, split) == (k, 0) for e, label, split in data if e == d)]

    def of(k: int, split: int) -> list[bytes]:
        return [d for (d, label, _), a in zip(data, after, strict=True) if (label, a) == (k, split)]

    try:
        after = choose(data, n)
    except InputError:
        enough = [len([1 for _, label, split in data if (label, split) == (k, 0)]) > n for k in range(3)]
        assert n and (not all(enough) or any(free(k).count(1) < n for k in range(3))), "singles alone would have done"
        return
    places: dict[bytes, set[tuple[int, int]]] = {}
    for (digest, label, _), split in zip(data, after, strict=True):
        places.setdefault(digest, set()).add((label, split))
    for k in range(3):
        trained = sum((label, split) == (k, 0) for _, label, split in data)
        assert len(of(k, 0)) >= min(trained, 1)
        able = any(m < trained for m in free(k))
        assert len(of(k, 2)) in ((n,) if n and able else range(1, trained) if able else (0,))
        shared = {d for d, where in places.items() if len({label for label, _ in where}) > 1 or (k, 1) in where}
        below = {d for d in of(k, 0) if fraction(d) < 0.2} - shared
        assert not below or (set(of(k, 0)) - shared == below and len(below) == 1), "the last one may train"
    assert all(len(where) == 1 for where in places.values() if any(split in (2, 3) for _, split in where))
    order = list(range(len(data)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert choose([data[i] for i in order], n) == [after[i] for i in order], "the order of the images does not matter"


def kinds(count: int) -> Files:
    return {f"{kind}/{i}.png": image(f"{kind}{i}.png") for kind in ("ant", "bee", "owl", "yak") for i in range(count)}


@pytest.mark.parametrize(("first", "then"), [(20, 28), (15, 16), (40, 200), (30, 31)])
def test_what_was_tested_is_never_trained_on_when_images_are_added(first: int, then: int, tmp_path: Path) -> None:
    split: dict[str, dict[str, str]] = {}
    for when, count in (("before", first), ("after", then)):
        root = put_on_disk(tmp_path / when, kinds(count))
        split[when] = {path: where for path, _, where in rows(load(root), root)}
    assert Counter(split["before"].values())["test"] >= 4
    for path, before in split["before"].items():
        after = split["after"][path]
        assert (before == "train") == (after == "train"), f"{path} was {before} and is {after}"


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 2)), min_size=40, max_size=80, unique_by=lambda of: of[0]),
    st.lists(st.tuples(st.integers(10**6 + 1, 2 * 10**6), st.integers(0, 2)), max_size=60, unique_by=lambda of: of[0]),
    st.sampled_from([0.1, 0.2, 0.5]),
)  # fmt: skip
def test_it_is_stable_when_any_images_are_added(
    first: list[tuple[int, int]], added: list[tuple[int, int]], share: float
) -> None:
    def pictures(of: list[tuple[int, int]]) -> list[tuple[bytes, int, int]]:
        return [(hashlib.sha256(str(k).encode()).digest(), label, 0) for k, label in of]

    one, both = pictures(first), pictures(first + added)
    if any(not any(label == k and fraction(d) >= share for d, label, _ in one) for k in range(3)):
        return  # a class without any other image must train on one
    before, after = choose(one, 0, share), choose(both, 0, share)
    for (digest, _, _), was, now in zip(one, before, after, strict=False):
        if fraction(digest) < share:
            assert was in (2, 3) and now in (2, 3)
        else:
            assert now in (0, 2) and (now == 0 or was == 2), "the lowest of a class that has none below"


# Classes without test images


def lone() -> Files:
    files = {f"{kind}/{i}.png": image(f"{kind}{i}.png") for kind in ("ant", "bee") for i in range(30)}
    return files | {"sole/1.png": image("sole.png"), "twin/1.png": image("twin.png"), "twin/2.png": image("twin.png")}


def test_a_class_of_one_image_is_asked_about_left_out_or_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = put_on_disk(tmp_path, lone())
    with pytest.raises(
        InputError, match=r"2 classes have no test images \(sole \(1\), twin \(2\).*without_test=leave-out"
    ):
        load(root)
    left = load(root, without_test="leave-out")
    assert left.classes == ("ant", "bee") and len(rows(left, root)) == 60
    assert "2 classes have no test images (sole (1), twin (2)" in capsys.readouterr().out
    kept = load(root, without_test="keep")
    assert kept.classes == ("ant", "bee", "sole", "twin")
    assert {(kind, split) for _, kind, split in rows(kept, root) if kind in ("sole", "twin")} == {
        ("sole", "train"), ("twin", "train")
    }  # fmt: skip
    test = {path for path, _, split in rows(kept, root) if split == "test"}
    assert test == {path for path, _, split in rows(left, root) if split == "test"} and len(test) > 5


def test_so_is_a_class_that_an_own_test_split_lacks(tmp_path: Path) -> None:
    files = png("train/a/1.png", "train/b/1.png", "train/c/1.png", "test/a/2.png", "test/c/3.png", "train/b/4.png")
    root = put_on_disk(tmp_path, files)
    left = load(root, without_test="leave-out")
    assert left.classes == ("a", "c") and len(left.images) == 4
    assert rows(left, root) == {
        (path, kind, split) for path, kind, split in (
            ("train/a/1.png", "a", "train"), ("train/c/1.png", "c", "train"),
            ("test/a/2.png", "a", "test"), ("test/c/3.png", "c", "test"),
        )
    }  # fmt: skip
    assert load(root, without_test="keep").classes == ("a", "b", "c")


# Fields without effect, and files that change


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"test_per_class": 2}, "has a test split, so data.test_per_class has no effect"),
        ({"test_share": 0.3}, "has a test split, so data.test_share has no effect"),
        ({"images": "ROOT"}, "data.images has no effect where data.source is an image folder"),
    ],
)
def test_fields_without_effect_are_refused(fields: dict[str, object], message: str, tmp_path: Path) -> None:
    root = put_on_disk(tmp_path, png("train/a/1.png", "train/b/1.png", "test/a/2.png", "test/b/2.png"))
    with pytest.raises(InputError, match=message):
        load(root, **fields)
    (tmp_path / "m.csv").write_text("path,label,split\ntrain/a/1.png,a,train\ntrain/b/1.png,b,test\n")
    with pytest.raises(InputError, match=r"data.class_depth has no effect where data.source is a list"):
        load(f"{root}/m.csv", class_depth=2)


def test_a_file_that_changes_between_listing_and_reading_is_noticed(tmp_path: Path) -> None:
    root = put_on_disk(tmp_path, png(*(f"{s}/{k}/{i}.png" for s in ("train", "test") for k in "ab" for i in range(3))))
    source = load(root)
    (tmp_path / "train/a/1.png").write_bytes(image("another.png"))
    said = []
    for i in range(len(source.images)):
        try:
            source.images.read(i)
        except InputError as error:
            said.append(str(error))
    assert said == [f"{root}/train/a/1.png has changed since it was listed; begin again once the data are at rest"]


def test_so_is_an_object(put_in_s3: Put, s3: S3) -> None:
    root = put_in_s3(png(*(f"{s}/{k}/{i}.png" for s in ("train", "test") for k in "ab" for i in range(2))))
    source = load(root)
    bucket, _, key = f"{root}/test/b/0.png".removeprefix("s3://").partition("/")
    s3.client().put_object(Bucket=bucket, Key=key, Body=image("another.png"))
    changed = [i for i in range(len(source.images)) if source.images.name(i).endswith("test/b/0.png")]
    with pytest.raises(InputError, match=r"test/b/0.png has changed since it was listed"):
        source.images.read(changed[0])


# Bad input


def png(*names: str) -> Files:
    return {name: image(name) for name in names}


def parquet(**columns: list[object]) -> bytes:
    out = io.BytesIO()
    pd.DataFrame(columns).to_parquet(out)
    return out.getvalue()


TWO = png("a/1.png", "a/2.png", "b/1.png", "b/2.png")
FLAT = png("1.png", "2.png", "3.png", "4.png")
GOOD = "path,label\na/1.png,a\na/2.png,a\nb/1.png,b\nb/2.png,b\n"
SPLIT = "path,label,split\na/1.png,a,train\na/2.png,a,test\nb/1.png,b,train\nb/2.png,b,test\n"
GONE = "path,label\n" + "".join(f"gone{i},a\n" for i in range(7)) + "a/1.png,a\na,b\n"
NUMBERS = "1.png 0\n2.png 0\n3.png 1\n4.png 1\n"

BAD: dict[str, tuple[Files, str, dict[str, object], str]] = {
    # files, source, further fields, what the message says
    "a misspelt split": (
        png("train/a/1.png", "train/b/1.png", "tset/a/2.png", "tset/b/2.png"), "", {},
        r"has the split folder train and tset, which is none; name all of them train, val or test",
    ),
    "one level too many": (
        png("all/a/1.png", "all/b/1.png"), "", {}, r"holds one folder, all, with folders in it; set data.source=\S*/all"
    ),
    "images beside no folder": (FLAT, "", {}, r"4 images lie in it without a class folder; lay them out as \S*/CLASS/"),
    "nothing": ({}, "none", {}, r"ROOT/none does not exist; correct data.source: it must be an image folder"),
    "kind": ({"x.json": b"{}"}, "x.json", {}, r"x.json is of no known kind; .* split list .* manifest"),
    "case of a folder": (png("train/Cat/1.png", "train/dog/2.png", "test/cat/3.png", "test/dog/4.png"), "", {},
        r"the classes 'Cat' \(in train\) and 'cat' \(in test\) differ in case alone and have no .* give both the same"),
    "case of a label": (png("1.png", "2.png", "3.png", "4.png") | {"m.csv": b"path,label,split\n1.png,Cat,train\n"
        b"2.png,dog,train\n3.png,CAT,test\n4.png,dog,test\n"}, "m.csv", {},
        r"'CAT' \(in test\) and 'Cat' \(in train\) differ in case alone"),
    "semicolons": (TWO | {"m.csv": b"path;label\na/1.png;a\nb/1.png;b\n"}, "m.csv", {},
        r"m.csv: its columns are parted by a semicolon, those of a .csv file by a comma; save it with a comma between"),
    "tabs": (TWO | {"m.csv": b"label\tpath\na\ta/1,2.png\n"}, "m.csv", {},
        r"m.csv: its columns are parted by a tab, .* between columns, or call it m.tsv"),
    "commas in a tsv": (TWO | {"m.tsv": b"path,label\na/1.png,a\n"}, "m.tsv", {},
        r"m.tsv: its columns are parted by a comma, those of a .tsv file by a tab; save it with a tab"),
    "Excel's mark": (TWO | {"m.csv": b"sep=;\npath;label\na/1.png;a\n"}, "m.csv", {},
        r"parted by a semicolon, .* between columns, without the line sep="),
    "flat folder": (FLAT, "", {}, r"ROOT has no images in class folders"),
    "empty class": (TWO | {"c/x.txt": b""}, "", {}, r"1 folder of ROOT holds no image \(c\).* move the folder"),
    "mixed": (TWO | png("train/a/1.png", "test/a/1.png"), "", {},
              r"split folders \(test, train\) and others \(a, b\)"),
    "one class": (png("a/1.png", "a/2.png"), "", {}, r"there is 1 class; a classifier needs at least two"),
    "test alone": (png("test/a/1.png", "test/b/1.png"), "", {}, r"ROOT has no training images; give some the split"),
    "val alone": (png("val/a/1.png", "val/b/1.png"), "", {}, r"ROOT has no training images"),
    "class without training": (png("train/a/1.png", "test/a/1.png", "test/b/2.png"), "", {},
                               r"class 'b' has no training image"),
    "class without test": (png("train/a/1.png", "train/b/1.png", "test/a/2.png"), "", {},
                           r"1 class has no test images \(b \(1\), .*or set data.without_test=leave"),
    "one image": (png("a/1.png", "a/2.png", "b/1.png"), "", {},
                  r"class has no test images \(b \(1\), in brackets .*\); a class gives some only if"),
    "too many wanted": (TWO, "", {"test_per_class": 2}, r"'a' can give only 1 of its 2 .*test_per_class to 1 or less"),
    "copies alone": (TWO | {"a/2.png": TWO["a/1.png"]}, "", {},
                     r"no test images \(a \(2\).* copies of an image stay together"),
    "shared by classes": (TWO | {"b/1.png": TWO["a/1.png"], "b/2.png": TWO["a/2.png"]}, "", {},
                          r"no test images \(a \(2\), b \(2\).* those that two classes or splits share stay"),
    "equal names": (png("a b/1.png", "a b/2.png", "a_b/1.png", "a_b/2.png"), "", {}, r"are both named 'a b'"),
    "no path column": ({"m.csv": b"name,label\nx,1\n"}, "m.csv", {},
                       r"m.csv has no column path or uri or image or file \(its columns: name, label\); rename or add"),
    "no label column": ({"m.jsonl": b'{"path":"x","kind":1}\n'}, "m.jsonl", {},
                        r"no column label or class \(.*path, kind"),
    "no columns at all": ({"m.parquet": parquet(x=[1], y=[2])}, "m.parquet", {}, r"no column path .*its columns: x, y"),
    "two names for the class": ({"m.csv": b"path,class,label\nx.png,oak,tree\n"}, "m.csv", {},
                                r"m.csv has the columns label and class, which differ, .*; rename the one"),
    "two names for the path": ({"m.csv": b"path,image,label\nx.png,y.png,tree\n"}, "m.csv", {},
                               r"m.csv has the columns path and image, which differ"),
    "two columns": ({"m.csv": b"path,label,label\nx,1,2\n"}, "m.csv", {}, r"m.csv has 2 columns label"),
    "empty label": (TWO | {"m.csv": GOOD.replace("2.png,a", "2.png, ").encode()}, "m.csv", {},
                    r"m.csv row 3: label is empty; give each image its class"),
    "missing label": (TWO | {"m.jsonl": b'{"path":"a/1.png","label":"a"}\n{"path":"a/2.png"}\n'}, "m.jsonl", {},
                      r"m.jsonl row 2: label is empty"),
    "null path": (TWO | {"m.parquet": parquet(path=["a/1.png", None], label=[0, 1])}, "m.parquet", {},
                  r"m.parquet row 2: path is empty; give each row the path"),
    "empty path": (TWO | {"m.tsv": b"path\tlabel\na/1.png\ta\n\tb\n"}, "m.tsv", {}, r"m.tsv row 3: path is empty"),
    "unknown split": (TWO | {"m.csv": SPLIT.replace("2.png,a,test", "2.png,a,dev").encode()}, "m.csv", {},
                      r"m.csv row 3: split 'dev' is not known; use train, val \(or validation\) or test"),
    "empty split": (TWO | {"m.csv": SPLIT.replace("2.png,b,test", "2.png,b,").encode()}, "m.csv", {},
                    r"m.csv row 5: split is empty; use train, val or test"),
    "no train split": (TWO | {"m.csv": SPLIT.replace("train", "test").encode()}, "m.csv", {},
                       r"has no training images"),
    "twice": (TWO | {"m.csv": (GOOD + "a/1.png,a\n").encode()}, "m.csv", {},
              r"m.csv row 6: 'a/1.png' is listed already in \S+/m.csv row 2; .* remove one"),
    "twice in other words": (TWO | {"m.csv": (GOOD + "b/../a//1.png,b\n").encode()}, "m.csv", {}, r"row 6: .* row 2"),
    "twice in two splits": (TWO | {"m.csv": (SPLIT + "a/1.png,a,test\n").encode()}, "m.csv", {}, r"row 6: .* row 2"),
    "twice in two lists": (TWO | {"train.txt": b"a/1.png a\nb/1.png b\n", "test.txt": b"\na/1.png a\n"},
                           "train.txt", {}, r"test.txt line 2: 'a/1.png' is listed already in \S+/train.txt line 1"),
    "ragged": (TWO | {"m.csv": (GOOD + "a/3.png,a,b\n").encode()}, "m.csv", {},
               r"m.csv cannot be read as csv \(.*Row #6: Expected 2 columns, got 3.*; correct that row"),
    "bad json": (TWO | {"m.jsonl": b'{"path":"a","label":1}\n{"path":\n'}, "m.jsonl", {}, r"as jsonl \(.* in row 2\)"),
    "changing type": ({"m.jsonl": b'{"path":"a","label":1}\n{"path":"b","label":"x"}\n'}, "m.jsonl", {},
                      r"label\) changed from number to string in row 2"),
    "not parquet": ({"m.parquet": b"path,label\n"}, "m.parquet", {}, r"m.parquet cannot be read as parquet"),
    "not utf-8": ({"m.csv": b"path,label\n\xff\xfe,1\n"}, "m.csv", {}, r"m.csv cannot be read as csv \(.*Row #2.*UTF8"),
    "header alone": ({"m.csv": b"path,label\n"}, "m.csv", {}, r"m.csv has no rows; add a row for each image"),
    "empty": ({"m.csv": b"\n"}, "m.csv", {}, r"m.csv has no rows; give it the columns path and label"),
    "empty parquet": ({"m.parquet": parquet(path=[], label=[])}, "m.parquet", {}, r"m.parquet has no rows"),
    "fractions": ({"m.parquet": parquet(path=["x"], label=[0.5])}, "m.parquet", {},
                  r"column label holds double, it must be text or whole numbers"),
    "pixels": ({"m.parquet": parquet(image=[{"bytes": b"x"}] * 2, label=[0, 1])}, "m.parquet", {},
               r"m.parquet row 1: 0\) are numbers, .* set data.class_names"),
    "missing files": (TWO | {"m.csv": GONE.encode()}, "m.csv", {},
                      r"8 of 9 listed images are no files \(ROOT/gone0, ROOT/gone1, ROOT/gone2, ROOT/gone3, "
                      r"ROOT/gone4, \.\.\.\); correct the paths, or set data.images"),
    "wrong images folder": (TWO | {"m.csv": GOOD.encode()}, "m.csv", {"images": "/nowhere"},
                            r"4 of 4 .*/nowhere/a/1.png"),
    "no label in a line": (FLAT | {"l.txt": b"1.png 0\n\n2.png\n"}, "l.txt", {}, r"l.txt line 3: '2.png' has no label"),
    "empty list": ({"l.txt": b" \n\n"}, "l.txt", {}, r"l.txt has no rows; write a line"),
    "latin list": ({"l.txt": b"\xe4.png 0\n"}, "l.txt", {}, r"l.txt is not UTF-8 text"),
    "numbers without names": (FLAT | {"l.txt": NUMBERS.encode()}, "l.txt", {},
                              r"l.txt line 1: 0\) are numbers, .* set data.class_names"),
    "mixed folders": (TWO | {"l.txt": b"a/1.png 0\nb/1.png 0\na/2.png 1\nb/2.png 1\n"}, "l.txt", {},
                      r"do not name the classes"),
    "gap": (TWO | {"l.txt": b"a/1.png 0\na/2.png 0\nb/1.png 2\nb/2.png 2\n"}, "l.txt", {},
            r"l.txt line 3: label '2' is out of range: there are 2 labels, so they must run from 0 to 1"),
    "negative": (TWO | {"l.txt": b"a/1.png 0\na/2.png 0\nb/1.png -1\n"}, "l.txt", {},
                 r"line 3: label '-1' is out of range"),
    "too few names": (FLAT | {"l.txt": NUMBERS.encode(), "n": b"cat\n"}, "l.txt", {"class_names": "n"},
                      r"l.txt line 3: label '1' has no line in \S+/n, which names labels 0 to 0"),
    "other count of names": (TWO | {"m.csv": GOOD.encode(), "n": b"x\ny\nz\n"}, "m.csv", {"class_names": "n"},
                             r"n names 3 classes, the images have 2 \(a, b\)"),
    "label not named": (TWO | {"m.csv": GOOD.encode(), "n.json": b'{"a": "cat"}'}, "m.csv", {"class_names": "n.json"},
                        r"m.csv row 4: label 'b' is not in \S+/n.json; add it"),
    "empty name": (TWO | {"m.csv": GOOD.encode(), "n": b"\nx\n"}, "m.csv", {"class_names": "n"},
                   r"class 0 has an empty name"),
    "broken names": (TWO | {"m.csv": GOOD.encode(), "n.json": b"{"}, "m.csv", {"class_names": "n.json"},
                     r"or not JSON"),
    "names in a list": (TWO | {"m.csv": GOOD.encode(), "n.json": b'["a", "b"]'}, "m.csv", {"class_names": "n.json"},
                        r"n.json is not of the form"),
    "no names file": (TWO | {"m.csv": GOOD.encode()}, "m.csv", {"class_names": "n"},
                      r"/n cannot be read \(No such file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_item_rule_and_fix(name: str, tmp_path: Path) -> None:
    files, source, fields, message = BAD[name]
    root = put_on_disk(tmp_path / "root", files)
    fields = dict(fields)
    if "class_names" in fields:
        fields["class_names"] = f"{root}/{fields['class_names']}"
    with pytest.raises(InputError) as caught:
        load(f"{root}/{source}".rstrip("/"), **fields)
    assert re.search(message.replace("ROOT", re.escape(root)), str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


def test_an_empty_source_explains_the_four_kinds() -> None:
    with pytest.raises(InputError) as caught:
        load("")
    for part in ("data.source=/data/birds)", "data.source=s3://bucket/birds", "train.txt", "/data/birds.csv"):
        assert part in str(caught.value)


def test_bad_addresses_in_s3(put_in_s3: Put) -> None:
    root = put_in_s3(TWO | {"m.csv": (GOOD + "c/1.png,a\n").encode()})
    cases = {
        f"{root}/m.csv": rf"1 of 5 listed images is no file \({root}/c/1.png\)",
        f"{root}/none.csv": r"none.csv at http://\S+: there is no such object",
        f"{root}/none": rf"{root}/none has no images in class folders",
        "s3://no-such-bucket/x": r"there is no such bucket",
        "s3://": r"'s3://' is not a full S3 address",
    }
    for source, expected in cases.items():
        with pytest.raises(InputError, match=expected):
            load(source)
