"""From a source to a data set: labels and names, and which images are taken."""

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lfm.config.schema import DataConfig
from lfm.data.artifact import read_info, write
from lfm.data.images import open_split
from lfm.data.sources.base import TEST, TRAIN, VAL, Source
from lfm.data.sources.fashion_mnist import CLASSES
from lfm.errors import InputError
from tests.conftest import Fashion, read_fashion
from tests.data_cases import AS_IS, SMALL, contents, files, made
from tests.pictures import encoded, photo

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
