"""From files to pixels and batches: size, statistics, the fast path, fetching ahead."""

import io
import os
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image

from lfm.backbones.towers import Preprocess
from lfm.data.artifact import read_info
from lfm.data.decoding import BadImageError
from lfm.data.images import Images, open_split
from lfm.data.sources.base import Arrays, Joined
from lfm.data.sources.fashion_mnist import CLASSES
from lfm.data.table import open_table
from lfm.errors import InputError
from tests.conftest import read_fashion
from tests.data_cases import AS_IS, NATIVE, contents, files, made
from tests.pictures import encoded, photo

CLIP = Preprocess(224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), "bicubic", "shortest")


def finished(split: Images, pixels: torch.Tensor) -> torch.Tensor:
    """The fast way to the tower's input, in float32."""
    out = split.empty(len(pixels), torch.float32)
    split.finish(pixels.float(), out)
    return out


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
