"""Fashion-MNIST's files: read, refused, fetched; and the data set artifact made of them."""

import functools
import gzip
import http.server
import multiprocessing
import shutil
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.datasets import FashionMNIST
from torchvision.datasets.mnist import read_image_file, read_label_file

from lfm.config import DataConfig, InputError
from lfm.data import Source, open_split, read_info, write
from lfm.data.fashion_mnist import CLASSES, SHA256, load_fashion_mnist, read_idx
from tests.conftest import write_idx

LABELS = "t10k-labels-idx1-ubyte"
SMALL = DataConfig(max_per_class=40, imbalance=8, val_per_class=15)


def small_source(folder: Path) -> Source:
    """The small files as a data set; `load_fashion_mnist` would refuse them: they are not the published ones."""
    train_images, train_labels, test_images, test_labels = (read_idx(folder / f"{name}.gz") for name in SHA256)
    return Source(
        train_images, train_labels.astype(np.int64), test_images, test_labels.astype(np.int64), CLASSES, "small"
    )


def made(folder: Path, source: Source, config: DataConfig = SMALL, seed: int = 0) -> Path:
    folder.mkdir()
    write(folder, source, config, seed)
    return folder


def contents(images: NDArray[np.uint8]) -> list[bytes]:
    return [image.tobytes() for image in images]


# --- idx files ---


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (4, 28, 28), (0, 28, 28)])
def test_read_idx_gives_back_what_was_written(shape: tuple[int, ...], suffix: str, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / f"a-file{suffix}"
    write_idx(path, array)
    found = read_idx(path)
    assert found.dtype == np.uint8 and found.shape == shape
    assert np.array_equal(found, array)


def test_the_published_files_are_read_as_torchvision_reads_them(
    fashion: Source, fashion_folder: Path, tmp_path: Path
) -> None:
    for name in (LABELS, "t10k-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (tmp_path / name).write_bytes(gzip.decompress((fashion_folder / f"{name}.gz").read_bytes()))
    assert np.array_equal(fashion.test_images, read_image_file(str(tmp_path / "t10k-images-idx3-ubyte")).numpy())
    assert np.array_equal(fashion.test_labels, read_label_file(str(tmp_path / LABELS)).numpy())
    assert np.array_equal(fashion.train_labels, read_label_file(str(tmp_path / "train-labels-idx1-ubyte")).numpy())
    assert fashion.train_images.shape == (60_000, 28, 28)
    assert np.bincount(fashion.train_labels).tolist() == [6000] * 10
    assert list(fashion.classes) == ["T-shirt/top", *FashionMNIST.classes[1:]]
    fashion.check()


def flipped(raw: bytes, place: int) -> bytes:
    return raw[:place] + bytes([raw[place] ^ 0xFF]) + raw[place + 1 :]


# What happens to the bytes of a real gzipped label file -> what the message must say.
DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "gzip truncated": (lambda gz: gz[: len(gz) // 2], "truncated"),
    "gzip cut inside its header": (lambda gz: gz[:5], "truncated"),
    "no gzip at all": (lambda gz: b"<html>please log in</html>", "not a gzip file"),
    "empty": (lambda gz: b"", "not an idx file"),
    "a flipped byte in the compressed data": (lambda gz: flipped(gz, 137), "truncated|gzip|damaged|corrupt"),
    "a flipped byte in gzip's own checksum": (lambda gz: flipped(gz, len(gz) - 8), "truncated|gzip|damaged|corrupt"),
    "idx truncated": (lambda gz: gzip.compress(gzip.decompress(gz)[:-1]), "10,007 bytes.* promises 10,008"),
    "idx cut inside its header": (lambda gz: gzip.compress(gzip.decompress(gz)[:6]), "truncated inside its header"),
    "idx with bytes too many": (lambda gz: gzip.compress(gzip.decompress(gz) + b"\0"), "10,009 .* promises 10,008"),
    "wrong magic": (lambda gz: gzip.compress(b"\x01" + gzip.decompress(gz)[1:]), "not an idx file"),
    "floats instead of bytes": (
        lambda gz: gzip.compress(struct.pack(">BBBBIf", 0, 0, 13, 1, 1, 1.0)),
        "not an idx file of unsigned bytes",
    ),
    "one label changed": (
        lambda gz: gzip.compress(flipped(gzip.decompress(gz), 5000)),
        f"not the published file.*{SHA256[LABELS][:12]}",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_with_its_name_what_is_wrong_and_the_fix(
    damage: str, fashion_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"{LABELS}.gz"
    intact = (fashion_folder / path.name).read_bytes()
    path.write_bytes(intact)
    read_idx(path, SHA256[LABELS])
    change, rule = DAMAGE[damage]
    path.write_bytes(change(intact))
    with pytest.raises(InputError, match=rule) as refusal:
        read_idx(path, SHA256[LABELS])
    assert str(path) in str(refusal.value) and "run again" in str(refusal.value)


@pytest.mark.parametrize("name", SHA256)
def test_a_missing_file_is_named_with_the_fix(name: str, fashion_folder: Path, tmp_path: Path) -> None:
    for other in SHA256.keys() - {name}:
        (tmp_path / f"{other}.gz").symlink_to(fashion_folder / f"{other}.gz")
    with pytest.raises(InputError, match=rf"{tmp_path} has no {name}.gz; put the four files .* data.source"):
        load_fashion_mnist(str(tmp_path))


def test_a_folder_with_unpacked_files_will_do(fashion_folder: Path, tmp_path: Path, fashion: Source) -> None:
    for name in SHA256:
        (tmp_path / name).write_bytes(gzip.decompress((fashion_folder / f"{name}.gz").read_bytes()))
    found = load_fashion_mnist(str(tmp_path))
    assert np.array_equal(found.train_images, fashion.train_images)
    assert found.checksum == fashion.checksum


# --- what the labels and names must be ---


def with_label(labels: NDArray[np.int64], place: int, label: int) -> NDArray[np.int64]:
    changed = labels.copy()
    changed[place] = label
    return changed


def renamed(source: Source, place: int, name: str) -> Source:
    return replace(source, classes=(*source.classes[:place], name, *source.classes[place + 1 :]))


def without_class(source: Source, split: str, k: int) -> Source:
    labels = getattr(source, f"{split}_labels")
    return replace(source, **{f"{split}_labels": np.where(labels == k, 0, labels)})


BAD_SOURCES: dict[str, tuple[Callable[[Source], Source], str]] = {
    "training label too large": (
        lambda s: replace(s, train_labels=with_label(s.train_labels, 17, 10)),
        r"training image 17 has label 10, but there are 10 classes \(0 to 9\); correct the label",
    ),
    "negative test label": (
        lambda s: replace(s, test_labels=with_label(s.test_labels, 3, -1)),
        r"test image 3 has label -1, but there are 10 classes \(0 to 9\); correct the label",
    ),
    "equal names": (lambda s: renamed(s, 7, "Sandal"), r"classes 5 and 7 are both named 'Sandal'.*rename one"),
    "names equal but for case and spaces": (
        lambda s: renamed(s, 0, " ankle  BOOT "),
        r"classes 0 and 9 are both named 'Ankle boot'.*rename one",
    ),
    "empty name": (lambda s: renamed(s, 4, "  "), r"class 4 has an empty name.*needs a word"),
    "class without training image": (
        lambda s: without_class(s, "train", 8),
        r"class 'Bag' has no training image; add one or leave the class out",
    ),
    "class without test image": (
        lambda s: without_class(s, "test", 1),
        r"class 'Trouser' has no test image; add one or leave the class out",
    ),
    "fewer training labels than images": (
        lambda s: replace(s, train_labels=s.train_labels[:-1]),
        r"600 training images but 599 labels; the two files do not belong together",
    ),
    "more test labels than images": (
        lambda s: replace(s, test_images=s.test_images[:-2]),
        r"98 test images but 100 labels; the two files do not belong together",
    ),
}


@pytest.mark.parametrize("fault", BAD_SOURCES)
def test_a_bad_data_set_is_refused_before_anything_is_written(fault: str, small_fashion: Path, tmp_path: Path) -> None:
    change, message = BAD_SOURCES[fault]
    good = small_source(small_fashion)
    good.check()
    bad = change(good)
    with pytest.raises(InputError, match=message):
        bad.check()
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError, match=message):
        write(out, bad, SMALL, 0)
    assert not list(out.iterdir())


# --- the artifact ---


def test_splits_have_the_profiles_counts_and_share_no_image(small_fashion: Path, tmp_path: Path) -> None:
    source = small_source(small_fashion)
    everything = contents(source.train_images) + contents(source.test_images)
    assert len(set(everything)) == len(everything), "the oracle needs images that differ"
    folder = made(tmp_path / "data", source)
    found = {
        split: (np.load(folder / f"{split}_images.npy"), np.load(folder / f"{split}_labels.npy"))
        for split in ("train", "val", "test")
    }
    expected = [int(40 * 8 ** (-k / 9) + 1e-6) for k in range(10)]
    assert expected[0] == 40 and expected[-1] == 5
    assert np.bincount(found["train"][1]).tolist() == expected == read_info(folder)["counts"]
    assert np.bincount(found["val"][1]).tolist() == [15] * 10
    assert np.bincount(found["test"][1]).tolist() == [10] * 10
    seen = {split: set(contents(images)) for split, (images, _) in found.items()}
    assert [len(seen[split]) for split in ("train", "val", "test")] == [sum(expected), 150, 100]
    assert not seen["train"] & seen["val"] and not seen["train"] & seen["test"] and not seen["val"] & seen["test"]
    label_of = dict(zip(everything, [*source.train_labels, *source.test_labels], strict=True))
    for images, labels in found.values():
        assert [label_of[image] for image in contents(images)] == labels.tolist()
    assert seen["test"] == set(contents(source.test_images))
    assert seen["train"] | seen["val"] <= set(contents(source.train_images))


def test_the_validation_set_is_the_last_images_of_each_class_whatever_the_seed(
    small_fashion: Path, tmp_path: Path
) -> None:
    source = small_source(small_fashion)
    expected = set()
    for k in range(10):
        of_class = [
            image for image, label in zip(contents(source.train_images), source.train_labels, strict=True) if label == k
        ]
        expected |= set(of_class[-15:])
    for seed in (0, 1):
        folder = made(tmp_path / f"data-{seed}", source, seed=seed)
        assert set(contents(np.load(folder / "val_images.npy"))) == expected


def test_the_subset_is_a_function_of_the_seed(small_fashion: Path, tmp_path: Path) -> None:
    source = small_source(small_fashion)
    first, again, other = (
        np.load(made(tmp_path / name, source, seed=seed) / "train_images.npy")
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert np.array_equal(first, again)
    assert set(contents(first)) != set(contents(other))


def test_without_validation_images_every_image_may_train(small_fashion: Path, tmp_path: Path) -> None:
    config = DataConfig(max_per_class=60, imbalance=1, val_per_class=0)
    source = small_source(small_fashion)
    folder = made(tmp_path / "data", source, config)
    assert len(np.load(folder / "val_labels.npy")) == 0
    assert open_split(folder, "val").pixels.shape == (0, 1, 28, 28)
    assert set(contents(np.load(folder / "train_images.npy"))) == set(contents(source.train_images))


def test_too_few_images_for_the_profile_are_refused_with_the_fix(small_fashion: Path, tmp_path: Path) -> None:
    config = DataConfig(max_per_class=50, imbalance=5, val_per_class=15)
    with pytest.raises(
        InputError, match=r"class 0 has 45 images, 50 were asked for; lower data.max_per_class or data.val_per_class"
    ):
        made(tmp_path / "data", small_source(small_fashion), config)


def test_info_names_the_origin_and_the_statistics_of_the_training_pixels(small_fashion: Path, tmp_path: Path) -> None:
    folder = made(tmp_path / "data", small_source(small_fashion), seed=4)
    info = read_info(folder)
    assert info["classes"] == list(CLASSES) and info["source"] == "small"
    assert (info["name"], info["imbalance"], info["subset_seed"]) == ("fashion-mnist", 8, 4)
    count_256 = [0] * 256  # a histogram of whole numbers: no rounding until the end
    for image in contents(np.load(folder / "train_images.npy")):
        for value in image:
            count_256[value] += 1
    n = sum(count_256)
    mean = sum(v * c for v, c in enumerate(count_256)) / n / 255
    square = sum(v * v * c for v, c in enumerate(count_256)) / n / 255**2
    assert info["mean"] == pytest.approx(mean, rel=1e-12)
    assert info["std"] == pytest.approx((square - mean**2) ** 0.5, rel=1e-10)


def test_the_default_profile_on_the_whole_data_set_is_the_demos(fashion: Source, tmp_path: Path) -> None:
    folder = made(tmp_path / "data", fashion, DataConfig())
    assert read_info(folder)["counts"] == [1000, 599, 359, 215, 129, 77, 46, 27, 16, 10]
    assert len(np.load(folder / "train_labels.npy", mmap_mode="r")) == 2478
    assert np.bincount(np.load(folder / "val_labels.npy")).tolist() == [500] * 10
    assert len(open_split(folder, "test").label_N) == 10_000
    last_N = np.sort(np.concatenate([np.flatnonzero(fashion.train_labels == k)[-500:] for k in range(10)]))
    assert np.array_equal(np.load(folder / "val_images.npy"), fashion.train_images[last_N])


def test_a_split_opens_with_channels_first_and_leaves_the_file_alone(small_fashion: Path, tmp_path: Path) -> None:
    folder = made(tmp_path / "data", small_source(small_fashion))
    path = folder / "test_images.npy"
    before = path.read_bytes()
    split = open_split(folder, "test")
    assert split.pixels.shape == (100, 1, 28, 28) and split.pixels.dtype == torch.uint8
    assert split.label_N.dtype == torch.int64
    assert np.array_equal(split.pixels[:, 0].numpy(), np.load(path))
    assert np.array_equal(split.label_N.numpy(), np.load(folder / "test_labels.npy"))
    split.pixels.fill_(7)
    assert path.read_bytes() == before


def test_colour_images_keep_their_channels(small_fashion: Path, tmp_path: Path) -> None:
    grey = small_source(small_fashion)

    def coloured(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.stack([images, 255 - images, images // 2], axis=3)[:, :, :20]

    source = replace(grey, train_images=coloured(grey.train_images), test_images=coloured(grey.test_images))
    split = open_split(made(tmp_path / "data", source), "test")
    assert split.pixels.shape == (100, 3, 28, 20)
    for channel, expected in enumerate((grey.test_images, 255 - grey.test_images, grey.test_images // 2)):
        assert np.array_equal(split.pixels[:, channel].numpy(), expected[:, :, :20])


def test_batches_are_in_the_unit_interval_and_normalise_to_mean_0_and_deviation_1(
    small_fashion: Path, tmp_path: Path
) -> None:
    folder = made(tmp_path / "data", small_source(small_fashion))
    split = open_split(folder, "train")
    index_B = torch.tensor([5, 0, 5])
    x = split.batch(index_B)
    raw = np.load(folder / "train_images.npy")
    assert x.shape == (3, 1, 28, 28) and x.dtype == torch.float32
    for place, index in enumerate(index_B.tolist()):
        for row, column in ((0, 0), (14, 14), (20, 9)):
            assert float(x[place, 0, row, column]) == pytest.approx(raw[index, row, column] / 255, abs=1e-7)
    whole = split.normalise(split.batch(torch.arange(len(raw)))).double()
    assert float(whole.mean()) == pytest.approx(0, abs=1e-5)
    assert float(whole.std(correction=0)) == pytest.approx(1, abs=1e-5)
    info = read_info(folder)
    assert float(split.normalise(torch.tensor(1.0))) == pytest.approx((1 - info["mean"]) / info["std"])


def test_a_folder_that_is_no_data_set_is_refused_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{tmp_path} is not a data set artifact: no info.json; run the prepare step"):
        open_split(tmp_path, "train")


# --- where the files come from ---


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Tell torchvision another address."""
    return lambda url: monkeypatch.setattr(FashionMNIST, "mirrors", [url])


@pytest.fixture
def nothing_answers(mirror: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    mirror(f"http://127.0.0.1:{closed_port()}/")
    monkeypatch.setenv("PATH", "")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and keeps quiet."""

    def log_message(self, *args: Any) -> None:
        pass

    def send_head(self) -> Any:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        return super().send_head()


@pytest.fixture
def serve() -> Iterator[Callable[[Path], http.server.ThreadingHTTPServer]]:
    """A real web server on loopback."""
    servers = []

    def start(folder: Path) -> http.server.ThreadingHTTPServer:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        server.asked = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def same_as_published(folder: Path) -> bool:
    return all(read_idx(folder / f"{name}.gz", SHA256[name]).size for name in SHA256)


@pytest.mark.usefixtures("nothing_answers")
def test_what_was_fetched_before_is_used_without_asking_anyone(
    home: Path, fashion_folder: Path, fashion: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    place = home / "downloads" / "fashion-mnist"
    place.mkdir(parents=True)
    for name in SHA256:
        (place / f"{name}.gz").symlink_to(fashion_folder / f"{name}.gz")
    found = load_fashion_mnist("")
    assert np.array_equal(found.train_images, fashion.train_images)
    assert f"from the local folder {place}" in capsys.readouterr().out


def test_the_mirror_is_asked_first_and_its_files_are_kept(
    home: Path,
    fashion_folder: Path,
    fashion: Source,
    serve: Callable[[Path], http.server.ThreadingHTTPServer],
    mirror: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = serve(fashion_folder)
    mirror(f"http://127.0.0.1:{server.server_port}/")
    found = load_fashion_mnist("")
    place = home / "downloads" / "fashion-mnist"
    assert sorted(server.asked) == sorted(f"/{name}.gz" for name in SHA256)  # type: ignore[attr-defined]
    assert {path.name for path in place.iterdir()} == {f"{name}.gz" for name in SHA256}
    for name in SHA256:
        assert (place / f"{name}.gz").read_bytes() == (fashion_folder / f"{name}.gz").read_bytes()
    assert np.array_equal(found.test_images, fashion.test_images)
    told = capsys.readouterr().out
    assert f"from torchvision's mirror, checksums verified, kept in {place}" in told and "Debian" not in told


def test_a_folder_that_lacks_a_file_is_filled(
    home: Path,
    fashion_folder: Path,
    serve: Callable[[Path], http.server.ThreadingHTTPServer],
    mirror: Callable[[str], None],
) -> None:
    place = home / "downloads" / "fashion-mnist"
    place.mkdir(parents=True)
    shutil.copyfile(fashion_folder / f"{LABELS}.gz", place / f"{LABELS}.gz")
    mirror(f"http://127.0.0.1:{serve(fashion_folder).server_port}/")
    load_fashion_mnist("")
    assert same_as_published(place)


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get")
def test_when_the_mirror_refuses_debians_package_is_fetched_and_named(
    home: Path, mirror: Callable[[str], None], fashion: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror(f"http://127.0.0.1:{closed_port()}/")
    found = load_fashion_mnist("")
    told = capsys.readouterr().out
    assert "torchvision's mirror did not answer" in told
    assert "from Debian's package dataset-fashion-mnist, checksums verified" in told
    assert np.array_equal(found.train_images, fashion.train_images)
    assert same_as_published(home / "downloads" / "fashion-mnist")


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get")
def test_a_mirror_with_an_altered_file_is_passed_over(
    home: Path,
    fashion_folder: Path,
    tmp_path: Path,
    serve: Callable[[Path], http.server.ThreadingHTTPServer],
    mirror: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    altered = tmp_path / "altered"
    altered.mkdir()
    for name in SHA256:
        (altered / f"{name}.gz").symlink_to(fashion_folder / f"{name}.gz")
    path = altered / f"{LABELS}.gz"
    raw = flipped(gzip.decompress(path.read_bytes()), 5000)
    path.unlink()
    path.write_bytes(gzip.compress(raw))
    server = serve(altered)
    mirror(f"http://127.0.0.1:{server.server_port}/")
    load_fashion_mnist("")
    assert f"/{LABELS}.gz" in server.asked  # type: ignore[attr-defined]
    told = capsys.readouterr().out
    assert "from Debian's package" in told and "from torchvision's mirror" not in told
    assert same_as_published(home / "downloads" / "fashion-mnist")


@pytest.mark.usefixtures("nothing_answers")
def test_when_nobody_answers_the_error_says_who_was_asked_and_what_to_do(home: Path) -> None:
    with pytest.raises(InputError) as refusal:
        load_fashion_mnist("")
    message = str(refusal.value)
    place = home / "downloads" / "fashion-mnist"
    for part in (str(place), "torchvision's mirror", "refused", "Debian's package", "no apt-get", "set data.source"):
        assert part in message
    assert not place.exists() or not list(place.iterdir())


def answering(payload: bytes) -> tuple[str, socket.socket]:
    """The address of a server that says `payload` to whatever it is asked."""
    listener = socket.create_server(("127.0.0.1", 0))

    def loop() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(4096)
                connection.sendall(payload)

    threading.Thread(target=loop, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/", listener


ANSWERS = {
    "nothing": b"",
    "not found": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    "a login page": b"HTTP/1.1 200 OK\r\n\r\n<html>please log in</html>",
    "less than promised": b"HTTP/1.1 200 OK\r\nContent-Length: 26421880\r\n\r\n\x1f\x8b",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a length that is no number": b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n\x1f\x8b",
    "a chunk cut off": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\nab",
}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.usefixtures("home")
def test_whatever_a_bad_mirror_says_the_next_source_is_tried(
    answer: str, mirror: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, listener = answering(ANSWERS[answer])
    mirror(url)
    monkeypatch.setenv("PATH", "")
    with listener, pytest.raises(InputError, match=r"torchvision's mirror: .*Debian's package .*set data.source"):
        load_fashion_mnist("")


@pytest.mark.parametrize("damage", ["gzip truncated", "one label changed", "a flipped byte in the compressed data"])
def test_files_are_kept_all_or_none(
    damage: str,
    home: Path,
    fashion_folder: Path,
    tmp_path: Path,
    serve: Callable[[Path], http.server.ThreadingHTTPServer],
    mirror: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last of the four is bad: the three before it must not stay as if the data set were there."""
    altered = tmp_path / "altered"
    altered.mkdir()
    for name in SHA256:
        (altered / f"{name}.gz").symlink_to(fashion_folder / f"{name}.gz")
    path = altered / f"{LABELS}.gz"
    damaged = DAMAGE[damage][0](path.read_bytes())
    path.unlink()
    path.write_bytes(damaged)
    mirror(f"http://127.0.0.1:{serve(altered).server_port}/")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="cannot be fetched"):
        load_fashion_mnist("")
    place = home / "downloads" / "fashion-mnist"
    assert not place.exists() or not list(place.iterdir())


@pytest.mark.usefixtures("nothing_answers")
def test_processes_that_fetch_at_once_all_get_the_files(
    home: Path,
    fashion_folder: Path,
    serve: Callable[[Path], http.server.ThreadingHTTPServer],
    mirror: Callable[[str], None],
) -> None:
    """First runs side by side, say of several seeds, share the download folder."""
    mirror(f"http://127.0.0.1:{serve(fashion_folder).server_port}/")
    fork = multiprocessing.get_context("fork")  # what is imported and set here holds there
    together = fork.Barrier(4)

    def fetch() -> None:
        together.wait(30)
        assert len(load_fashion_mnist("").train_labels) == 60_000

    processes = [fork.Process(target=fetch) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    place = home / "downloads" / "fashion-mnist"
    assert same_as_published(place) and len(list(place.glob("*.gz"))) == 4
