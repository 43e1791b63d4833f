"""From a source to batches: selection, Arrow files, pixels, the fast path, and what a bad image leads to."""

import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from open_clip.transform import image_transform
from PIL import Image

from lfm.backbones.towers import Preprocess
from lfm.config.schema import DataConfig
from lfm.data.artifact import add_pixels, judge, read_info, write
from lfm.data.decoding import ODD, BadImageError, decode, decode_fast, look
from lfm.data.images import Images, open_split
from lfm.data.sources.base import TEST, TRAIN, VAL, Arrays, Files, Joined, Source
from lfm.data.sources.fashion_mnist import CLASSES
from lfm.data.table import open_table
from lfm.errors import InputError
from tests import warm
from tests.conftest import Fashion, read_fashion
from tests.deep import tiff
from tests.pictures import encoded, photo

SMALL = DataConfig(name="fashion-mnist", max_per_class=40, imbalance=8, val_per_class=15)
AS_IS = DataConfig(name="custom", profile="as-is")
NATIVE = Preprocess(0, (), (), "bicubic", "squash")
CLIP = Preprocess(224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), "bicubic", "shortest")


def made(folder: Path, source: Source, config: DataConfig = SMALL, seed: int = 0, to: Preprocess = NATIVE) -> Path:
    """Both steps of the artifact."""
    table = folder.with_name(folder.name + "-table")
    table.mkdir()
    folder.mkdir()
    write(table, source, config, seed, folder.with_name(folder.name + "-work"))
    judge(table, config)
    add_pixels(folder, table, to, config, folder.with_name(folder.name + "-pixels"))
    return folder


def contents(images: NDArray[np.uint8]) -> list[bytes]:
    return [image.tobytes() for image in images]


def finished(split: Images, pixels: torch.Tensor) -> torch.Tensor:
    """The fast way to the tower's input, in float32."""
    out = split.empty(len(pixels), torch.float32)
    split.finish(pixels.float(), out)
    return out


def files(folder: Path, data: list[bytes], classes: int = 2, test: int = 2) -> Source:
    """The first `test` images are test images; labels go round."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{k:05d}.img" for k in range(len(data))]
    for path, content in zip(paths, data, strict=True):
        path.write_bytes(content)
    split_N = np.array([TEST] * test + [TRAIN] * (len(data) - test), np.int8)
    names = tuple(f"kind {k}" for k in range(classes))
    return Source(Files([str(p) for p in paths]), np.arange(len(data)) % classes, split_N, names, "files")


# --- what the labels and names must be ---


def with_label(arrays: Fashion, split: str, place: int, label: int) -> Source:
    changed = getattr(arrays, f"{split}_labels").copy()
    changed[place] = label
    return arrays._replace(**{f"{split}_labels": changed}).source()


def renamed(arrays: Fashion, place: int, name: str) -> Source:
    return arrays.source((*CLASSES[:place], name, *CLASSES[place + 1 :]))


def without_class(arrays: Fashion, split: str, k: int) -> Source:
    labels = getattr(arrays, f"{split}_labels")
    return arrays._replace(**{f"{split}_labels": np.where(labels == k, 0, labels)}).source()


BAD_SOURCES: dict[str, tuple[Callable[[Fashion], Source], str]] = {
    "training label too large": (
        lambda s: with_label(s, "train", 17, 10),
        r"training image 17 has label 10, but the labels of the 10 classes are 0 to 9; correct the label",
    ),
    "negative test label": (
        lambda s: with_label(s, "test", 3, -1),
        r"test image 3 has label -1, but the labels of the 10 classes are 0 to 9; correct the label",
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
        lambda s: s._replace(train_labels=s.train_labels[:-1]).source(),
        r"600 training images but 599 labels; the two files do not belong together",
    ),
    "more test labels than images": (
        lambda s: s._replace(test_images=s.test_images[:-2]).source(),
        r"98 test images but 100 labels; the two files do not belong together",
    ),
    "one class": (
        lambda s: s._replace(train_labels=s.train_labels * 0, test_labels=s.test_labels * 0).source(("Bag",)),
        r"there is 1 class; a classifier needs at least two",
    ),
}


@pytest.mark.parametrize("fault", BAD_SOURCES)
def test_a_bad_data_set_is_refused_before_anything_is_written(fault: str, small_fashion: Path, tmp_path: Path) -> None:
    change, message = BAD_SOURCES[fault]
    good = read_fashion(small_fashion)
    good.source().check()
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError, match=message):
        write(out, change(good), SMALL, 0, tmp_path / "work")
    assert not list(out.iterdir())


def test_published_names_may_be_equal_where_the_loader_says_so(small_fashion: Path) -> None:
    replace(renamed(read_fashion(small_fashion), 7, "Sandal"), equal_names=True).check()
    with pytest.raises(InputError, match="empty name"):
        replace(renamed(read_fashion(small_fashion), 7, " "), equal_names=True).check()


# --- which images ---


def test_splits_have_the_profiles_counts_and_share_no_image(small_fashion: Path, tmp_path: Path) -> None:
    arrays = read_fashion(small_fashion)
    everything = contents(arrays.train_images) + contents(arrays.test_images)
    assert len(set(everything)) == len(everything), "the oracle needs images that differ"
    folder = made(tmp_path / "data", arrays.source())
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
    label_of = dict(zip(everything, [*arrays.train_labels, *arrays.test_labels], strict=True))
    for images, labels in found.values():
        assert [label_of[image] for image in contents(images)] == labels.tolist()
    assert seen["test"] == set(contents(arrays.test_images))
    assert seen["train"] | seen["val"] <= set(contents(arrays.train_images))


def test_the_validation_set_is_the_last_images_of_each_class_whatever_the_seed(
    small_fashion: Path, tmp_path: Path
) -> None:
    arrays = read_fashion(small_fashion)
    expected = set()
    for k in range(10):
        of_class = [
            image for image, label in zip(contents(arrays.train_images), arrays.train_labels, strict=True) if label == k
        ]
        expected |= set(of_class[-15:])
    for seed in (0, 1):
        folder = made(tmp_path / f"data-{seed}", arrays.source(), seed=seed)
        assert set(contents(np.load(folder / "val_images.npy"))) == expected


@pytest.mark.parametrize(("counts", "per_class", "most"), [((9, 3), 3, 2), ((4, 12), 5, 3), ((20, 20), 20, 19)])
def test_a_validation_set_that_would_empty_a_class_is_refused(
    counts: tuple[int, int], per_class: int, most: int, tmp_path: Path
) -> None:
    label_N = np.repeat([0, 1, 0, 1], [*counts, 2, 2])
    data = [encoded(photo(k, 12, 12)) for k in range(len(label_N))]
    source = files(tmp_path / "raw", data)
    split_N = np.array([TRAIN] * sum(counts) + [TEST] * 4, np.int8)
    source = dataclasses.replace(source, label_N=label_N, split_N=split_N)
    config = AS_IS.model_copy(update={"val_per_class": per_class})
    name = f"kind {int(np.argmin(counts))}"
    message = (
        rf"class '{name}' has {min(counts)} training images, and data.val_per_class={per_class} would take them all"
    )
    with pytest.raises(InputError, match=rf"{message}; set it to {most} or less"):
        made(tmp_path / "data", source, config)
    assert len(open_split(made(tmp_path / "less", source, config.model_copy(update={"val_per_class": most})), "val"))


def test_the_subset_is_a_function_of_the_seed(small_fashion: Path, tmp_path: Path) -> None:
    source = read_fashion(small_fashion).source()
    first, again, other = (
        np.load(made(tmp_path / name, source, seed=seed) / "train_images.npy")
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert np.array_equal(first, again)
    assert set(contents(first)) != set(contents(other))


def test_without_validation_images_every_image_may_train(small_fashion: Path, tmp_path: Path) -> None:
    arrays = read_fashion(small_fashion)
    folder = made(tmp_path / "data", arrays.source(), DataConfig(name="fashion-mnist", imbalance=1))
    val = open_split(folder, "val")
    assert len(val) == 0 and val.fetch(torch.arange(0)).shape == (0, 1, 28, 28)
    assert set(contents(np.load(folder / "train_images.npy"))) == set(contents(arrays.train_images))


def test_the_largest_class_gets_as_much_as_the_profile_allows(small_fashion: Path, tmp_path: Path) -> None:
    config = DataConfig(name="fashion-mnist", imbalance=10)
    info = read_info(made(tmp_path / "data", read_fashion(small_fashion).source(), config))
    assert info["counts"] == [int(60 * 10 ** (-k / 9) + 1e-6) for k in range(10)] and info["counts"][0] == 60


def test_the_step_profile_and_the_data_as_they_are(small_fashion: Path, tmp_path: Path) -> None:
    arrays = read_fashion(small_fashion)
    step = DataConfig(name="fashion-mnist", profile="step", imbalance=12)
    assert read_info(made(tmp_path / "step", arrays.source(), step))["counts"] == [60] * 5 + [5] * 5
    folder = made(tmp_path / "as-is", arrays.source(), DataConfig(name="fashion-mnist", profile="as-is"))
    assert np.array_equal(np.load(folder / "train_images.npy"), arrays.train_images), "all, in their order"


def test_too_few_images_for_the_profile_are_refused_with_the_fix(small_fashion: Path, tmp_path: Path) -> None:
    config = DataConfig(name="fashion-mnist", max_per_class=50, imbalance=5, val_per_class=15)
    with pytest.raises(
        InputError, match=r"class 0 has 45 images, 50 were asked for; lower data.max_per_class or data.val_per_class"
    ):
        made(tmp_path / "data", read_fashion(small_fashion).source(), config)


def test_a_validation_split_of_the_datas_own_is_kept_and_not_added_to(tmp_path: Path) -> None:
    source = files(tmp_path / "raw", [encoded(photo(k, 20, 20)) for k in range(8)])
    source = replace(source, split_N=np.array([TEST, TEST, VAL, TRAIN, TRAIN, VAL, TRAIN, TRAIN], np.int8))
    folder = made(tmp_path / "data", source, AS_IS)
    expected = np.stack([np.asarray(photo(k, 20, 20)) for k in (2, 5)])
    assert np.array_equal(np.load(folder / "val_images.npy"), expected)
    with pytest.raises(InputError, match=r"custom has a validation split of its own; set data.val_per_class=0"):
        made(tmp_path / "more", source, AS_IS.model_copy(update={"val_per_class": 1}))


@pytest.mark.slow
def test_the_presets_profile_on_the_whole_data_set_is_the_demos(fashion: Fashion, tmp_path: Path) -> None:
    config = DataConfig(name="fashion-mnist", max_per_class=1000, val_per_class=500)
    folder = made(tmp_path / "data", fashion.source(), config)
    assert read_info(folder)["counts"] == [1000, 599, 359, 215, 129, 77, 46, 27, 16, 10]
    assert len(np.load(folder / "train_labels.npy", mmap_mode="r")) == 2478
    assert np.bincount(np.load(folder / "val_labels.npy")).tolist() == [500] * 10
    assert len(open_split(folder, "test")) == 10_000
    last_N = np.sort(np.concatenate([np.flatnonzero(fashion.train_labels == k)[-500:] for k in range(10)]))
    assert np.array_equal(np.load(folder / "val_images.npy"), fashion.train_images[last_N])


# --- the Arrow files ---


def test_hugging_face_datasets_opens_the_artifact_with_images_and_class_names(
    small_fashion: Path, tmp_path: Path
) -> None:
    arrays = read_fashion(small_fashion)
    folder = made(tmp_path / "data", arrays.source(), DataConfig(name="fashion-mnist", profile="as-is"))
    found = datasets.load_from_disk(str(folder))
    assert set(found) == {"train", "val", "test"} and found["train"].num_rows == 600
    assert isinstance(found["train"].features["image"], datasets.Image)
    assert found["train"].features["label"].names == list(CLASSES)
    for k in (0, 311, 599):
        row = found["train"][k]
        assert np.array_equal(np.asarray(row["image"]), arrays.train_images[k])
        assert row["label"] == arrays.train_labels[k] and (row["width"], row["height"], row["mode"]) == (28, 28, "L")
    assert found["test"].filter(lambda row: row["label"] == 9).num_rows == 10


def test_encoded_bytes_are_kept_as_they_were_and_found_over_shards_and_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lfm.data.table.SHARD", 7)
    monkeypatch.setattr("lfm.data.table.BATCH_BYTES", 3000)
    data = [encoded(photo(k, 24, 24), "jpeg" if k % 2 else "png") for k in range(40)]
    source = files(tmp_path / "raw", data)
    folder = made(tmp_path / "data", source, AS_IS)
    table = open_table(folder, "train")
    assert len(table.batches) > 6 and len(table) == 38
    for i in range(38):
        assert bytes(table.encoded(i)) == data[i + 2] and table.name(i) == f"{i + 2:05d}.img"
    assert table.column("label").tolist() == [k % 2 for k in range(2, 40)]
    assert len(list((folder / "train").glob("data-*-of-00006.arrow"))) == 6
    with pa.memory_map(str(folder / "train" / "data-00005-of-00006.arrow")) as file:
        assert len(pa.ipc.open_stream(file).read_all()) == 3


@pytest.mark.slow
def test_a_build_killed_at_any_moment_goes_on_and_gives_the_same(tmp_path: Path) -> None:
    data = [encoded(photo(k, 400, 300), "jpeg") for k in range(120)]
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        files(tmp_path / name / "raw", data)
    command = warm.program("build_data.py")
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True, timeout=120)
    work, kills = tmp_path / "killed" / "work", 0
    for stage in ("train-00003.arrow", "train-00009.arrow", "train_images.npy.done"):
        process = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while process.poll() is None and not (work / stage).exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills >= 2
    before = {p.name: p.stat().st_mtime_ns for p in work.glob("train-0000[0-3].arrow")}
    subprocess.run([*command, str(tmp_path / "killed")], check=True, capture_output=True, timeout=120)
    assert before and all((work / name).stat().st_mtime_ns == at for name, at in before.items()), "kept, not redone"
    for path in (tmp_path / "whole" / "data").rglob("*"):
        if path.is_file():
            other = tmp_path / "killed" / "data" / path.relative_to(tmp_path / "whole" / "data")
            assert other.read_bytes() == path.read_bytes(), path


# --- odd and bad images ---


def animated() -> bytes:
    out = io.BytesIO()
    photo(1, 20, 20).save(out, "gif", save_all=True, append_images=[photo(2, 20, 20)])
    return out.getvalue()


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(photo(3, 60, 20), "jpeg", exif=exif, quality=98, subsampling=0)


def sixteen_bit() -> bytes:
    deep = (np.arange(40 * 40, dtype=np.uint32).reshape(40, 40) * 40).astype(np.uint16)
    return encoded(Image.fromarray(deep), "png")


ODD_IMAGES: dict[str, Callable[[], bytes]] = {
    "cmyk": lambda: encoded(photo(1, 40, 40, "CMYK"), "jpeg"),
    "deep": sixteen_bit,
    "no-number": lambda: tiff(np.array([[0.5, np.nan] * 20] * 30, "<f4")),
    "deep-tiff": lambda: tiff(np.random.default_rng(0).integers(0, 65536, (30, 40, 3)).astype("<u2")),
    "animated": animated,
    "rotated": rotated,
    "alpha": lambda: encoded(photo(1, 40, 40, "RGBA"), "png"),
    "tiny": lambda: encoded(photo(1, 1, 1), "png"),
}


@pytest.mark.parametrize("kind", ODD_IMAGES)
def test_an_odd_image_is_used_and_remembered(kind: str) -> None:
    assert set(ODD_IMAGES) == set(ODD)
    data = ODD_IMAGES[kind]()
    assert look(data, 100).odd == (("deep", kind) if kind == "no-number" else (kind,))
    image = decode(data, "x", 100)
    assert image.mode == "RGB"
    assert look(encoded(photo(1, 40, 40)), 100).odd == ()


@pytest.mark.parametrize("kind", [*ODD_IMAGES, "grey"])
def test_the_fast_way_decodes_odd_images_to_the_same_pixels(kind: str) -> None:
    data = encoded(photo(1, 40, 30, "L"), "jpeg") if kind == "grey" else ODD_IMAGES[kind]()
    found = decode_fast(memoryview(data), "x", 100)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(decode(data, "x", 100)))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (7, 33), (16, 16), (101, 67), (500, 375)])
def test_the_fast_way_decodes_jpegs_to_the_same_bits(
    subsampling: int, progressive: bool, size: tuple[int, int]
) -> None:
    for quality in (30, 75, 100):
        out = io.BytesIO()
        photo(quality, *size).save(out, "jpeg", quality=quality, subsampling=subsampling, progressive=progressive)
        found = decode_fast(memoryview(out.getvalue()), "x", 100)
        assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(decode(out.getvalue(), "x", 100)))


def test_the_fast_way_says_what_is_wrong_as_the_other_does() -> None:
    whole = encoded(photo(1, 200, 100), "jpeg")
    for data, limit in ((whole[: len(whole) // 2], 100), (b"junk", 100), (b"", 100), (whole, 0.001)):
        said = []
        for way in (decode, decode_fast):
            with pytest.raises(BadImageError, match=r"^x ") as caught:
                way(memoryview(data), "x", limit)
            said.append(str(caught.value))
        assert said[0] == said[1]


def test_orientation_is_applied_and_16_bits_are_scaled() -> None:
    upright = np.asarray(photo(3, 60, 20).transpose(Image.Transpose.ROTATE_270), np.int16)
    found = np.asarray(decode(rotated(), "x", 100), np.int16)
    assert found.shape == (60, 20, 3) and np.abs(found - upright).mean() < 6  # JPEG's own loss
    deep = (np.arange(40 * 40).reshape(40, 40) * 40) % 65536
    assert np.abs(np.asarray(decode(sixteen_bit(), "x", 100))[:, :, 0] - deep / 257).max() <= 0.5


def bomb() -> bytes:
    return encoded(Image.new("1", (30_000, 20_000)), "png")


BAD_IMAGES: dict[str, tuple[Callable[[], bytes], str]] = {
    "zero bytes": (lambda: b"", "has zero bytes"),
    "text": (lambda: b"<html>404</html>", "is no image"),
    "truncated jpeg": (lambda: encoded(photo(1), "jpeg")[:4000], "truncated or damaged"),
    "truncated png": (lambda: encoded(photo(1))[:4000], "truncated or damaged"),
    "truncated gif": (lambda: animated()[:300], "truncated or damaged|is no image"),
    "jpeg cut in its header": (lambda: encoded(photo(1), "jpeg")[:100], "truncated or damaged|is no image"),
    "png with a flipped byte": (
        lambda: (lambda d: d[:5000] + bytes([d[5000] ^ 0xFF]) + d[5001:])(encoded(photo(1))),
        "truncated or damaged",
    ),
    "webp cut": (lambda: encoded(photo(1), "webp")[:500], "truncated or damaged|is no image"),
    "bmp cut": (lambda: encoded(photo(1), "bmp")[:500], "truncated or damaged"),
    "tiff cut": (lambda: encoded(photo(1), "tiff")[:200], "truncated or damaged|is no image"),
    "decompression bomb": (bomb, r"(30000 x 20000 pixels, above|far above) data.max_megapixels"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_stops_the_build_with_its_name_or_is_left_out(kind: str, tmp_path: Path) -> None:
    make, message = BAD_IMAGES[kind]
    data = [encoded(photo(k, 20, 20)) for k in range(10)]
    data.insert(5, make())
    source = files(tmp_path / "raw", data)
    with pytest.raises(InputError, match=rf"1 of 11 images cannot be used: \S*00005.img .*({message})") as refusal:
        made(tmp_path / "stop", source, AS_IS)
    assert "set data.on_bad_image=skip" in str(refusal.value)
    skip = AS_IS.model_copy(update={"on_bad_image": "skip", "max_bad": 0.1})
    folder = made(tmp_path / "skip", source, skip)
    assert len(open_split(folder, "train")) == 8
    assert [Path(line.split(" ")[0]).name for line in json.loads((folder / "notes/bad.json").read_text())] == [
        "00005.img"
    ]
    with pytest.raises(InputError, match=r"1 of 11 images cannot be used, more than data.max_bad = 0.05 allows"):
        made(tmp_path / "limit", source, skip.model_copy(update={"max_bad": 0.05}))


def test_many_bad_images_are_counted_and_the_first_ones_named(tmp_path: Path) -> None:
    data = [encoded(photo(k, 20, 20)) for k in range(6)] + [b""] * 25
    with pytest.raises(InputError, match=r"25 of 31 .*00006.img has zero bytes;.*; and 15 more\. Mend or remove them"):
        made(tmp_path / "data", files(tmp_path / "raw", data), AS_IS)


def test_a_class_left_without_images_is_an_error_even_when_bad_ones_are_skipped(tmp_path: Path) -> None:
    data = [encoded(photo(k, 20, 20)) if k % 2 == 0 or k < 2 else b"" for k in range(10)]
    skip = AS_IS.model_copy(update={"on_bad_image": "skip", "max_bad": 0.9})
    with pytest.raises(InputError, match=r"class 'kind 1' has no readable image left in train"):
        made(tmp_path / "data", files(tmp_path / "raw", data), skip)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    source = files(tmp_path / "raw", [encoded(photo(k, 20, 20)) for k in range(6)])
    (tmp_path / "raw" / "00004.img").unlink()
    with pytest.raises(InputError, match=r"00004.img cannot be read \(No such file or directory\)"):
        made(tmp_path / "data", source, AS_IS)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 7), st.integers(0, 3000), st.binary(min_size=1, max_size=40), st.integers(0, 2))
def test_whatever_happens_to_the_bytes_the_image_is_used_or_refused(
    kind: int, place: int, junk: bytes, how: int
) -> None:
    """A fuzzer over every format: nothing but BadImageError may come out, and what was seen whole decodes."""
    formats = ("png", "jpeg", "gif", "bmp", "webp", "tiff", "ppm", "jpeg2000")
    data = encoded(photo(kind, 40, 30), formats[kind])
    place %= len(data)
    data = (data[:place], data[:place] + junk + data[place:], data[:place] + junk + data[place + len(junk) :])[how]
    try:
        seen = look(data, 1)
    except BadImageError:
        return
    try:
        assert decode_fast(memoryview(data), "x", 1).shape[0] == 3
        image = decode(data, "x", 1)
    except BadImageError:
        return
    assert image.mode == "RGB" and {image.width, image.height} == {seen.width, seen.height}


def test_the_difference_hash_is_that_of_its_definition_and_survives_small_changes() -> None:
    image = photo(5, 320, 240)
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), int)
    expected = int("".join("1" if grey[y][x + 1] > grey[y][x] else "0" for y in range(8) for x in range(8)), 2)
    assert look(encoded(image), 100).dhash == expected
    again = look(encoded(image.resize((240, 180)), "jpeg", quality=80), 100).dhash
    other = look(encoded(photo(6, 320, 240)), 100).dhash
    assert (again ^ expected).bit_count() <= 3 < (other ^ expected).bit_count()


# --- pixels ---


@pytest.mark.parametrize(
    ("mode", "interpolation"), [("shortest", "bicubic"), ("squash", "bicubic"), ("shortest", "bilinear")]
)
@pytest.mark.parametrize("size", [(300, 200), (150, 333), (224, 224), (500, 500), (100, 90)])
def test_decoded_pixels_are_open_clips_to_the_last_bit(
    size: tuple[int, int], mode: str, interpolation: str, tmp_path: Path
) -> None:
    to = replace(CLIP, resize_mode=mode, interpolation=interpolation)
    data = [encoded(photo(k, *size), "jpeg", quality=92) for k in range(6)]
    theirs = image_transform(
        224, is_train=False, mean=to.mean, std=to.std, resize_mode=mode, interpolation=interpolation
    )
    expected = torch.stack([theirs(Image.open(io.BytesIO(d))) for d in data[2:]])
    for decode_when in ("once", "each-time"):
        config = AS_IS.model_copy(update={"decode": decode_when})
        split = open_split(
            made(tmp_path / decode_when, files(tmp_path / f"raw-{decode_when}", data), config, to=to), "train"
        )
        assert split.held == (decode_when == "once")
        assert torch.allclose(split.exact(torch.arange(4)), expected, atol=1e-6)
        assert torch.allclose(finished(split, split.fetch(torch.tensor([2]))), expected[2:3], atol=1e-6)


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("size", [(32, 32), (48, 32), (28, 64)])
def test_small_images_resized_on_the_device_are_open_clips_within_one_grey_level(
    size: tuple[int, int], mode: str, tmp_path: Path
) -> None:
    """Scoring keeps PIL's rounding after each of its passes; training mixes first and rounds nowhere."""
    to = replace(CLIP, resize_mode=mode, size=96)
    images = [photo(k, *size) for k in range(12)]
    rng = np.random.default_rng(0)
    images += [Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)) for _ in range(4)]
    folder = made(tmp_path / "data", files(tmp_path / "raw", [encoded(i) for i in images]), AS_IS, to=to)
    assert read_info(folder)["pixels"] == "native"
    split = open_split(folder, "train")
    assert split.shape == (3, size[1], size[0]) and split.side == 96
    theirs = image_transform(96, is_train=False, mean=to.mean, std=to.std, resize_mode=mode)
    expected = torch.stack([theirs(i) for i in images[2:]])
    std = torch.tensor(to.std)[:, None, None]
    order = torch.arange(len(split))
    levels = (split.exact(order) - expected).mul(std * 255).abs()
    assert levels.max() < 1e-3, "not even one: PIL's arithmetic to the last bit"
    fast = (finished(split, split.fetch(order)) - expected).mul(std * 255).abs()
    assert fast[:10].mean() < 0.5, "photos; noise overshoots and PIL clamps it between its passes"


def test_how_pixels_are_kept_follows_their_size_and_the_limit(tmp_path: Path) -> None:
    big = files(tmp_path / "raw", [encoded(photo(k, 80, 80)) for k in range(6)])
    kept = {}
    changes: dict[str, dict[str, Any]] = {
        "auto": {}, "limit": {"decode_gb": 1e-6}, "once": {"decode": "once", "decode_gb": 1e-6}
    }  # fmt: skip
    for name, values in changes.items():
        kept[name] = read_info(made(tmp_path / name, big, AS_IS.model_copy(update=values), to=CLIP))["pixels"]
    assert kept == {"auto": "fitted", "limit": "encoded", "once": "fitted"}
    assert not list((tmp_path / "limit").glob("*_images.npy"))


def test_a_tower_from_scratch_takes_images_of_one_size_or_says_what_to_set(tmp_path: Path) -> None:
    data = [encoded(photo(k, 20 + k % 2, 20)) for k in range(8)]
    source = files(tmp_path / "raw", data)
    with pytest.raises(
        InputError, match=r"the images have 2 sizes, from \(20, 20\) to \(21, 20\).*model.image_size=64"
    ):
        made(tmp_path / "data", source, AS_IS)
    folder = made(tmp_path / "resized", source, AS_IS, to=replace(NATIVE, size=16))
    split = open_split(folder, "train")
    assert split.shape == (3, 16, 16)
    expected = np.asarray(photo(2, 20, 20).resize((16, 16), Image.Resampling.BICUBIC))
    assert np.array_equal(split.fetch(torch.tensor([0]))[0].permute(1, 2, 0).numpy(), expected)
    with pytest.raises(InputError, match=r"takes mean and deviation from the pixels; set data.decode=once"):
        made(tmp_path / "each", source, AS_IS.model_copy(update={"decode": "each-time"}), to=replace(NATIVE, size=16))


def test_info_has_the_statistics_of_the_training_pixels(small_fashion: Path, tmp_path: Path) -> None:
    folder = made(tmp_path / "data", read_fashion(small_fashion).source(), seed=4)
    info = read_info(folder)
    assert info["classes"] == list(CLASSES)
    assert (info["name"], info["imbalance"], info["subset_seed"]) == ("fashion-mnist", 8, 4)
    count_256 = [0] * 256  # a histogram of whole numbers: no rounding until the end
    for image in contents(np.load(folder / "train_images.npy")):
        for value in image:
            count_256[value] += 1
    n = sum(count_256)
    mean = sum(v * c for v, c in enumerate(count_256)) / n / 255
    square = sum(v * v * c for v, c in enumerate(count_256)) / n / 255**2
    assert info["preprocess"]["mean"] == pytest.approx([mean], rel=1e-12)
    assert info["preprocess"]["std"] == pytest.approx([(square - mean**2) ** 0.5], rel=1e-10)


def test_a_split_opens_with_channels_first_and_leaves_the_file_alone(small_fashion: Path, tmp_path: Path) -> None:
    folder = made(tmp_path / "data", read_fashion(small_fashion).source())
    path = folder / "test_images.npy"
    before = path.read_bytes()
    split = open_split(folder, "test")
    pixels = split.fetch(torch.arange(100))
    assert pixels.shape == (100, *split.shape) == (100, 1, 28, 28) and pixels.dtype == torch.uint8
    assert split.label_N.dtype == torch.int64
    assert np.array_equal(pixels[:, 0].numpy(), np.load(path))
    assert np.array_equal(split.label_N.numpy(), np.load(folder / "test_labels.npy"))
    pixels.fill_(7)
    assert path.read_bytes() == before


def test_colour_images_keep_their_channels_and_grey_ones_among_them_get_three(tmp_path: Path) -> None:
    images = [photo(k, 20, 28, "L" if k == 4 else "RGB") for k in range(6)]
    folder = made(tmp_path / "data", files(tmp_path / "raw", [encoded(i) for i in images]), AS_IS)
    split = open_split(folder, "train")
    assert split.shape == (3, 28, 20) and read_info(folder)["channels"] == 3
    for k in range(4):
        expected = np.asarray(images[k + 2].convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(split.fetch(torch.tensor([k]))[0].numpy(), expected)


def test_the_training_pixels_normalise_to_mean_0_and_deviation_1(small_fashion: Path, tmp_path: Path) -> None:
    folder = made(tmp_path / "data", read_fashion(small_fashion).source())
    split = open_split(folder, "train")
    index_B = torch.tensor([5, 0, 5])
    x = finished(split, split.fetch(index_B))
    raw, info = np.load(folder / "train_images.npy"), read_info(folder)["preprocess"]
    assert x.shape == (3, 1, 28, 28) and x.dtype == torch.float32
    for place, index in enumerate(index_B.tolist()):
        for row, column in ((0, 0), (14, 14), (20, 9)):
            expected = (raw[index, row, column] / 255 - info["mean"][0]) / info["std"][0]
            assert float(x[place, 0, row, column]) == pytest.approx(expected, abs=1e-6)
    whole = split.exact(torch.arange(len(raw))).double()
    assert float(whole.mean()) == pytest.approx(0, abs=1e-5)
    assert float(whole.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_a_folder_that_is_no_data_set_is_refused_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{tmp_path} is not a data set artifact: no info.json; run the prepare step"):
        open_split(tmp_path, "train")
    with pytest.raises(InputError, match="is not a split of a data set artifact"):
        open_table(tmp_path, "train")


# --- sources ---


def test_joined_collections_are_one_after_the_other() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 256, (n, 6, 5, 3), dtype=np.uint8) for n in (3, 4))
    joined = Joined([Arrays(first, "a"), Arrays(second[:0], "none"), Arrays(second, "b")])
    assert len(joined) == 7 and [joined.name(i) for i in (0, 2, 3, 6)] == [
        "a image 0",
        "a image 2",
        "b image 0",
        "b image 3",
    ]
    for i, expected in enumerate([*first, *second]):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(joined.read(i)))), expected)


def test_fetching_ahead_gives_the_same_batches(tmp_path: Path) -> None:
    from lfm.data.prefetch import fetched_ahead, mixed_images
    from lfm.method.mixup import PairBatch

    data = [encoded(photo(k, 80, 70), "jpeg") for k in range(20)]
    splits: list[Images] = []
    for when in ("once", "each-time"):
        config = AS_IS.model_copy(update={"decode": when})
        to = replace(CLIP, size=40)
        folder = made(tmp_path / when, files(tmp_path / f"raw-{when}", data), config, to=to)
        splits.append(open_split(folder, "train", resize="exact"))
    splits.append(open_split(folder, "train"))

    def batches() -> list[PairBatch]:
        rng = np.random.default_rng(0)
        return [
            PairBatch(
                torch.from_numpy(rng.integers(0, 18, (4, 2))),
                torch.from_numpy(rng.random(4).astype(np.float32)) if k % 3 else torch.ones(4),
                torch.zeros(4, 2, dtype=torch.long),
                torch.ones(4, 2),
                torch.Generator().manual_seed(k),
            )
            for k in range(9)
        ]

    held, ahead, fast = (
        [mixed_images(split, batch, True, pixels) for batch, pixels in fetched_ahead(split, batches())]
        for split in splits
    )
    assert len(held) == len(ahead) == len(fast) == 9
    assert all(torch.equal(a, b) for a, b in zip(held, ahead, strict=True))
    levels = (torch.cat(fast) - torch.cat(held)).mul(255 * torch.tensor(CLIP.std)[:, None, None]).abs()
    assert 0 < levels.max() < 2.01, "torch's 8-bit kernels, which nearly always round as PIL does"
    assert levels.mean() < 0.05
    assert torch.equal(splits[1].exact(torch.arange(18)), splits[2].exact(torch.arange(18))), "evaluation: PIL's"


def test_as_many_threads_decode_as_the_configuration_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = files(tmp_path / "raw", [encoded(photo(k, 80, 70), "jpeg") for k in range(20)])
    folder = made(tmp_path / "data", source, AS_IS.model_copy(update={"decode": "each-time"}), to=CLIP)
    there = set(threading.enumerate())
    cores = len(os.sched_getaffinity(0))
    for workers, processes, expected in ((3, 1, 3), (1, 1, 1), (0, 1, cores), (0, 2 * cores, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        split = open_split(folder, "train", workers=workers)
        split.fetch(torch.arange(18))
        began = {thread for thread in threading.enumerate() if thread not in there}
        assert len(began) == expected
        there |= began


def test_an_image_that_goes_bad_later_is_named(tmp_path: Path) -> None:
    source = files(tmp_path / "raw", [encoded(photo(k, 80, 70), "jpeg") for k in range(6)])
    config = AS_IS.model_copy(update={"decode": "each-time"})
    folder = made(tmp_path / "data", source, config, to=CLIP)
    path = next((folder / "train").glob("*.arrow"))
    raw = bytearray(path.read_bytes())
    start = raw.index(b"JFIF") - 6
    raw[start : start + 400] = bytes(400)
    path.chmod(0o600)
    path.write_bytes(raw)
    with pytest.raises(BadImageError, match=re.escape("00002.img")):
        open_split(folder, "train").fetch(torch.tensor([0]))
