"""CIFAR's published forms: read, refused, fetched (over 300 lines: all on the same archives in each form)."""

import dataclasses
import hashlib
import http.server
import io
import pickle
import shutil
import struct
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from numpy.typing import NDArray

from lfm.config.schema import DataConfig
from lfm.data.sources import cifar as module
from lfm.data.sources.base import TEST, TRAIN, Source
from lfm.data.sources.cifar import load_cifar10, load_cifar100
from lfm.data.sources.cifar_files import CIFAR10, CIFAR100, Cifar, Layout
from lfm.data.subsets import profile, subset
from lfm.errors import InputError
from tests.cifar_archives import (
    HUNDRED,
    layout,
    members,
    names_of,
    pickled,
    py2,
    py2_array,
    py2_dtype,
    small,
    write_archive,
)

BOTH = pytest.mark.parametrize("cifar", [CIFAR10, CIFAR100], ids=lambda cifar: cifar.name)
FORMS = pytest.mark.parametrize("form", ["python", "binary"])
LOAD = {"cifar10": load_cifar10, "cifar100": load_cifar100}


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    return folder


def load(cifar: Cifar, source: Path, verify: bool = False, **more: Any) -> Source:
    return LOAD[cifar.name](DataConfig(source=str(source), verify=verify, **more))


def pixels(source: Source) -> NDArray[np.uint8]:
    """All images, decoded from the PNG that the source gives out."""
    from PIL import Image

    return np.stack([np.asarray(Image.open(io.BytesIO(source.images.read(i)))) for i in range(len(source.images))])


# --- reading ---


def test_the_pickles_of_these_tests_are_real_ones() -> None:
    """numpy itself reads them: an oracle for the writer."""
    plane_NP = np.arange(60, dtype=np.uint8).reshape(4, 15)
    for array in (plane_NP, np.asfortranarray(plane_NP)):
        read = pickle.loads(pickled({"data": array, "labels": [3, 250]}), encoding="latin1")
        assert np.array_equal(read["data"], plane_NP) and read["data"].dtype == np.uint8
        assert read["labels"] == [3, 250]


PLACES: dict[str, Callable[[Path, Layout, dict[str, bytes]], Path]] = {
    "the archive": lambda tmp, at, files: write_archive(tmp / at.archive, at.folder, files),
    "the archive under another name": lambda tmp, at, files: write_archive(tmp / "mine.tgz", at.folder, files),
    "a folder with the archive": lambda tmp, at, files: write_archive(tmp / at.archive, at.folder, files).parent,
    "the unpacked folder": lambda tmp, at, files: write_folder(tmp / "renamed", files),
    "its parent": lambda tmp, at, files: write_folder(tmp / at.folder, files).parent,
}


@BOTH
@FORMS
@pytest.mark.parametrize("place", PLACES)
def test_every_form_in_every_place_gives_the_same(cifar: Cifar, form: str, place: str, tmp_path: Path) -> None:
    train, test = small(cifar)
    source = load(cifar, PLACES[place](tmp_path, layout(cifar, form), members(cifar, form, train, test)))
    label_N = [label for _, labels in (*train, test) for label in labels]
    assert source.label_N.tolist() == label_N
    assert source.split_N.tolist() == [TRAIN] * sum(len(labels) for _, labels in train) + [TEST] * len(test[1])
    assert source.classes == tuple(name.replace("_", " ") for name in names_of(cifar))
    source.check()
    image_N = pixels(source)
    assert image_N.shape == (len(label_N), 32, 32, 3)
    for channel in range(3):  # the specification: 1024 bytes of red, of green, of blue, each row by row
        plane_NP = np.concatenate([plane_NP for plane_NP, _ in (*train, test)])
        for place_in_plane in (0, 31, 32, 500, 1023):
            row, column = divmod(place_in_plane, 32)
            assert np.array_equal(image_N[:, row, column, channel], plane_NP[:, channel * 1024 + place_in_plane])


def test_columns_first_arrays_are_read_in_their_order(tmp_path: Path) -> None:
    train, test = small(CIFAR100)
    turned = [(np.asfortranarray(plane_NP), labels) for plane_NP, labels in train]
    a = load(CIFAR100, write_folder(tmp_path / "a", members(CIFAR100, "python", train, test)))
    b = load(CIFAR100, write_folder(tmp_path / "b", members(CIFAR100, "python", turned, test)))
    assert np.array_equal(pixels(a), pixels(b))
    assert a.checksum != b.checksum


@FORMS
def test_the_checksum_names_the_bytes(form: str, tmp_path: Path) -> None:
    files = members(CIFAR10, form, *small(CIFAR10))
    at = layout(CIFAR10, form)
    archive = write_archive(tmp_path / at.archive, at.folder, files)
    assert load(CIFAR10, archive).checksum == hashlib.sha256(archive.read_bytes()).hexdigest()
    same, again, other = (write_folder(tmp_path / name, files) for name in "abc")
    (other / at.test).write_bytes(members(CIFAR10, form, *small(CIFAR10, seed=1))[at.test])
    assert load(CIFAR10, same).checksum == load(CIFAR10, again).checksum != load(CIFAR10, other).checksum


def test_class_names_of_ones_own(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "x", members(CIFAR10, "binary", *small(CIFAR10)))
    (tmp_path / "names.txt").write_text("\n".join("abcdefghij"))
    assert load(CIFAR10, folder, class_names=str(tmp_path / "names.txt")).classes == tuple("abcdefghij")


# --- verified ---


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Small archives that pass for the published ones of CIFAR-10: the table has their md5 and counts."""
    paths, forms = {}, {}
    for form in ("python", "binary"):
        at = layout(CIFAR10, form)
        paths[form] = write_archive(tmp_path / at.archive, at.folder, members(CIFAR10, form, *small(CIFAR10)))
        forms[form] = dataclasses.replace(at, md5=hashlib.md5(paths[form].read_bytes()).hexdigest())
    monkeypatch.setattr(module, "CIFAR10", dataclasses.replace(CIFAR10, **forms, train_count=4, test_count=1))
    return paths


@FORMS
def test_the_published_archive_passes_and_a_changed_byte_does_not(form: str, published: dict[str, Path]) -> None:
    path = published[form]
    assert len(load(CIFAR10, path, verify=True).label_N) == 50
    raw = bytearray(path.read_bytes())
    raw[5] ^= 1  # the time in the gzip header: nothing but the md5 can tell
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"truncated or altered: its md5 is [0-9a-f]{32}, not .*cifar-10-python"):
        load(CIFAR10, path, verify=True)
    assert len(load(CIFAR10, path).label_N) == 50


def test_the_other_data_set_is_named(published: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"is cifar-10-binary\.tar\.gz, and CIFAR-100 was asked for"):
        load(CIFAR100, published["binary"], verify=True)
    with pytest.raises(InputError, match=r"so it is not CIFAR-100"):
        load(CIFAR100, published["binary"])


@pytest.mark.slow
def test_a_full_size_folder_is_counted_and_gives_the_subsets_of_ldam_drw(tmp_path: Path) -> None:
    """50,000 + 10,000 records of the published size."""
    rng = np.random.default_rng(5)
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    for name, count in (("train.bin", 500), ("test.bin", 100)):
        record_NB = np.zeros((100 * count, 3074), np.uint8)
        record_NB[:, 1] = rng.permutation(np.repeat(np.arange(100), count))
        (folder / name).write_bytes(record_NB.tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join(HUNDRED))
    source = load(CIFAR100, folder, verify=True)
    shutil.rmtree(folder)  # 184 MB that pytest would keep
    source.check()
    label_N = source.label_N[source.split_N == TRAIN]
    assert (len(label_N), len(source.label_N)) == (50_000, 60_000)
    count_C = profile(500, 100, 100)
    assert subset(label_N, count_C, 0).tolist() == ldam_drw(label_N, 500, 100)


@FORMS
def test_a_folder_with_one_label_changed_is_refused(form: str, published: dict[str, Path], tmp_path: Path) -> None:
    train, test = small(CIFAR10)
    good = write_folder(tmp_path / "good", members(CIFAR10, form, train, test))
    assert len(load(CIFAR10, good, verify=True).label_N) == 50
    other = (test[0], [(test[1][0] + 1) % 10, *test[1][1:]])
    bad = write_folder(tmp_path / "bad", members(CIFAR10, form, train, other))
    assert len(load(CIFAR10, bad).label_N) == 50
    with pytest.raises(InputError, match=r"10 test images, and not 1 of each of the 10 classes.*data\.verify=false"):
        load(CIFAR10, bad, verify=True)
    fewer = write_folder(tmp_path / "fewer", members(CIFAR10, form, [*train[:-1], train[0]], test))
    with pytest.raises(InputError, match=r"40 training images, and not 4 of each of the 10 classes"):
        load(CIFAR10, fewer, verify=True)


# --- the long-tailed subsets ---


def ldam_drw(label_N: NDArray[np.int64], most: int, imbalance: float) -> list[int]:
    """The published procedure, by its description: one seed, per ascending class shuffle and keep the first."""
    state = np.random.get_state()
    np.random.seed(0)
    kept: list[int] = []
    classes = sorted(set(label_N.tolist()))
    for k in classes:
        place = np.array([i for i, label in enumerate(label_N.tolist()) if label == k])
        np.random.shuffle(place)
        kept += place.tolist()[: int(most * (1 / imbalance) ** (k / (len(classes) - 1)))]
    np.random.set_state(state)
    return kept


@pytest.mark.parametrize(
    ("classes", "imbalance", "total"),
    [(10, 10, 20_431), (10, 50, 13_996), (10, 100, 12_406), (100, 10, 19_573), (100, 50, 12_608), (100, 100, 10_847)],
)
def test_the_six_subsets_of_the_paper(classes: int, imbalance: int, total: int) -> None:
    most = 50_000 // classes
    label_N = np.random.default_rng(classes).permutation(np.repeat(np.arange(classes), most))
    count_C = profile(most, imbalance, classes)
    kept = subset(label_N, count_C, seed=0)
    assert len(kept) == len(set(kept.tolist())) == total
    found = Counter(label_N[kept].tolist())
    assert (found[0], found[classes - 1]) == (most, most // imbalance)
    assert [found[k] for k in range(classes)] == count_C.tolist()
    if classes == 10:  # the oracle looks at every image for every class
        assert kept.tolist() == ldam_drw(label_N, most, imbalance)


# --- refused ---


def call(name: str, argument: str) -> bytes:
    where, _, what = name.rpartition(".")
    return b"\x80\x02c" + f"{where}\n{what}\n".encode() + py2((argument,)) + b"R."


@pytest.mark.parametrize("name", ["os.system", "posix.system", "builtins.eval", "__builtin__.eval", "numpy.load"])
@pytest.mark.parametrize("file", ["data_batch_3", "batches.meta"])
def test_a_pickle_that_calls_something_is_refused_and_not_run(name: str, file: str, tmp_path: Path) -> None:
    trace = tmp_path / "it-ran"
    argument = f"touch {trace}" if "system" in name else f"__import__('pathlib').Path({str(trace)!r}).touch()"
    files = members(CIFAR10, "python", *small(CIFAR10)) | {file: call(name, argument)}
    archive = write_archive(tmp_path / "x.tar.gz", "cifar-10-batches-py", files)
    with pytest.raises(InputError, match=rf"{file} is not as published: it asks for {name}.*put cifar-10-python"):
        load(CIFAR10, archive)
    assert not trace.exists()


def test_the_malicious_pickle_would_run() -> None:
    """The test above can fail: Python's own unpickler does call."""
    assert pickle.loads(call("builtins.eval", "40 + 2")) == 42


HUGE = struct.pack("<i", 2**31 - 1)
GOOD_DTYPE = py2_dtype("u1")
DAMAGED = {
    "objects": (py2_array((1, 3072), py2_dtype("O8"), False, bytes(3072)), "type b'O8'"),
    "floats": (py2_array((1, 3072), py2_dtype("f4"), False, bytes(4 * 3072)), "type b'f4'"),
    "a list of objects": (
        py2_array((1, 3072), GOOD_DTYPE, False, b"").replace(py2(b"") + b"tb", py2([1]) + b"tb"),
        "not of plain bytes",
    ),
    "no dtype": (py2_array((1, 3072), py2("u1"), False, bytes(3072)), "not of plain bytes"),
    "another shape than bytes": (py2_array((2, 3072), GOOD_DTYPE, False, bytes(3072)), "cannot reshape"),
    "flat": (py2_array((3072,), GOOD_DTYPE, False, bytes(3072)), "no array 'data'"),
    "narrow": (py2_array((1, 3000), GOOD_DTYPE, False, bytes(3000)), "no array 'data'"),
    "no array": (py2([1, 2]), "no array 'data'"),
    "a called class": (b"cnumpy\nndarray\n" + py2((3,)) + b"R", "not callable"),
    "promises too much": (b"T" + HUGE + b"x", "not as published"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_an_array_of_another_kind_is_refused(damage: str, tmp_path: Path) -> None:
    array, message = DAMAGED[damage]
    files = members(CIFAR10, "python", *small(CIFAR10))
    files["test_batch"] = b"\x80\x02}(" + py2("labels") + py2([1]) + py2("data") + array + b"u."
    with pytest.raises(InputError, match=rf"test_batch.*{message}"):
        load(CIFAR10, write_folder(tmp_path / "x", files))


@pytest.mark.parametrize(
    ("labels", "message"),
    [([1, 2], "1 image but 2 labels"), (["1"], "no list 'labels'"), ([-1], "no list"), ([300], "no list"), (7, "no")],
)
def test_labels_of_another_kind_are_refused(labels: Any, message: str, tmp_path: Path) -> None:
    files = members(CIFAR10, "python", *small(CIFAR10))
    files["data_batch_2"] = pickled({"labels": labels, "data": np.zeros((1, 3072), np.uint8)})
    with pytest.raises(InputError, match=rf"data_batch_2.*{message}"):
        load(CIFAR10, write_folder(tmp_path / "x", files))


@pytest.mark.parametrize("raw", [b"", b"\x80\x02", b"}.", b"].", pickled({"label_names": 5}), b"\xff\xfe"])
def test_broken_names_are_refused(raw: bytes, tmp_path: Path) -> None:
    files = members(CIFAR10, "python", *small(CIFAR10)) | {"batches.meta": raw}
    with pytest.raises(InputError, match=r"batches\.meta.*put cifar-10-python"):
        load(CIFAR10, write_folder(tmp_path / "x", files))


@pytest.mark.parametrize("cut", [0, 1, 5, 200])
def test_a_pickle_cut_short_anywhere_is_refused(cut: int, tmp_path: Path) -> None:
    files = members(CIFAR10, "python", *small(CIFAR10))
    raw = files["data_batch_5"]
    files["data_batch_5"] = raw[:cut] if cut < 100 else raw[:-cut]
    with pytest.raises(InputError, match="data_batch_5"):
        load(CIFAR10, write_folder(tmp_path / "x", files))


@pytest.mark.parametrize("raw", [b"", bytes(3072), bytes(2 * 3073 - 1)])
def test_binary_records_cut_short_are_refused(raw: bytes, tmp_path: Path) -> None:
    files = members(CIFAR10, "binary", *small(CIFAR10)) | {"test_batch.bin": raw}
    with pytest.raises(InputError, match=r"test_batch\.bin is truncated: [0-9,]+ bytes are not records of 3,073"):
        load(CIFAR10, write_folder(tmp_path / "x", files))


@FORMS
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9])
def test_a_truncated_archive_is_refused(form: str, share: float, tmp_path: Path) -> None:
    at = layout(CIFAR10, form)
    path = write_archive(tmp_path / at.archive, at.folder, members(CIFAR10, form, *small(CIFAR10)))
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    for verify in (True, False):
        with pytest.raises(InputError, match=rf"{at.archive} (is truncated|has no ).*put cifar-10-python"):
            load(CIFAR10, path, verify=verify)


def test_an_archive_with_the_wrong_members_is_refused(tmp_path: Path) -> None:
    at = CIFAR10.binary
    files = members(CIFAR10, "binary", *small(CIFAR10))
    del files["data_batch_4.bin"]
    path = tmp_path / "x.tar.gz"
    with pytest.raises(InputError, match=r"x\.tar\.gz has no data_batch_4\.bin, so it is not CIFAR-10"):
        load(CIFAR10, write_archive(path, at.folder, files))
    with pytest.raises(InputError, match=r"x\.tar\.gz holds test_batch\.bin twice"):
        load(CIFAR10, write_archive(path, at.folder, files, ("elsewhere/test_batch.bin", files["test_batch.bin"])))
    write_archive(path, at.folder, {})
    with tarfile.open(path, "w:gz") as archive:  # a link to a file of the machine is not followed
        link = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(InputError, match=r"has no .*so it is not CIFAR-10"):
        load(CIFAR10, path)
    path.write_bytes(b"plain text")
    with pytest.raises(InputError, match="truncated or not a tar archive"):
        load(CIFAR10, path)


def test_nothing_there_says_what_to_put_where(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "no such folder"):
        with pytest.raises(InputError, match=r"holds no CIFAR-100; put cifar-100-python\.tar\.gz .*data\.source"):
            load(CIFAR100, place)


# --- fetched ---


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """A web server's address, its folder, and the paths that were asked of it."""
    folder, asked = tmp_path / "web", list[str]()
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_: Any) -> None:
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}", folder, asked
        served.shutdown()
        thread.join()


def test_fetched_once_checked_and_kept(
    published: dict[str, Path],
    server: tuple[str, Path, list[str]],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, folder, asked = server
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"{url}/it.tar.gz")
    place = home / "downloads" / "cifar-10"
    raw = published["python"].read_bytes()
    (folder / "it.tar.gz").write_bytes(raw[:-1])
    with pytest.raises(InputError, match=rf"md5 is .*put cifar-10-python\.tar\.gz \(or the binary one\) into {place}"):
        load_cifar10(DataConfig())
    assert list(place.iterdir()) == []
    (folder / "it.tar.gz").write_bytes(raw)
    first = load_cifar10(DataConfig())
    assert [path.name for path in place.iterdir()] == ["cifar-10-python.tar.gz"]
    second = load_cifar10(DataConfig())
    assert asked == ["/it.tar.gz"] * 2
    assert first.checksum == second.checksum == hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize(("path", "reason"), [("missing", "Not Found|not found"), (None, "refused")])
def test_where_the_network_refuses_the_file_and_its_place_are_named(
    path: str | None,
    reason: str,
    server: tuple[str, Path, list[str]],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "url", f"{server[0]}/{path}" if path else "http://127.0.0.1:9/x")
    place = home / "downloads" / "cifar-100"
    with pytest.raises(
        InputError, match=rf"({reason}).*; put cifar-100-python\.tar\.gz \(or the binary one\) into {place}, or set"
    ):
        load_cifar100(DataConfig())
    assert list(place.iterdir()) == []


def test_both_forms_hold_the_same_images_in_the_same_order(tmp_path: Path) -> None:
    sources = []
    for form in ("python", "binary"):
        at = layout(CIFAR10, form)
        path = write_archive(tmp_path / at.archive, at.folder, members(CIFAR10, form, *small(CIFAR10)))
        sources.append(load(CIFAR10, path))
    a, b = sources
    assert np.array_equal(a.label_N, b.label_N) and np.array_equal(a.split_N, b.split_N) and a.classes == b.classes
    assert [a.images.read(i) for i in range(len(a.images))] == [b.images.read(i) for i in range(len(b.images))]
