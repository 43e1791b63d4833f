"""Images of more than 8 bits: one rule for all images of a data set, the same in serving, and said in the report."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lfm.data.artifact import read_info
from lfm.data.audit import audit
from lfm.data.decoding import BadImageError, decode, decode_fast, look
from lfm.data.depth import ranges_in
from lfm.data.images import open_split
from tests.deep import chunk, png16, tiff
from tests.deep_scenes import KINDS, SIDE, Array, build, scenes


def levels_of(name: str) -> list[Array]:
    low, high, *_ = KINDS[name]
    pictures = scenes(low, high)
    if name.startswith("floats") or name == "degrees":
        return [p.astype(np.float32).astype(np.float64) for p in pictures]
    if "PGM" in name:  # as PIL has it
        return [np.floor(p) * 65535 // 1023 for p in pictures]
    return [np.floor(p) for p in pictures]


def greys(folder: Path) -> Array:
    """(N, H, W) of all images in the order they were given, test images first."""
    parts = [open_split(folder, split).fetch_training(np_range(folder, split)).numpy() for split in ("test", "train")]
    return np.concatenate(parts)[:, 0]


def np_range(folder: Path, split: str) -> Any:
    import torch

    return torch.arange(len(open_split(folder, split)))


@pytest.mark.parametrize("name", KINDS)
def test_one_range_for_all_images(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    low, high, make, expected = KINDS[name]
    folder = build(tmp_path, [make(p) for p in scenes(low, high)])
    ((begin, end),) = (of for kind, of in ranges_in(read_info(folder)).items() if kind in read_info(folder)["depth"])
    levels = np.stack(levels_of(name))
    if expected is None:  # close to what the training images hold, by an oracle of their pooled levels
        assert begin == pytest.approx(np.quantile(levels[2:], 0.01), abs=0.02 * (high - low))
        assert end == pytest.approx(levels[2:].max(), abs=0.03 * (high - low))
    else:
        assert (begin, end) == expected
    oracle = np.rint(np.clip((levels - begin) / (end - begin), 0, 1) * 255)
    assert np.abs(greys(folder) - oracle).max() <= 1
    assert oracle[0].mean() < oracle[-1].mean() / 2, "a dark picture stays darker than a bright one"
    said = capsys.readouterr().out
    assert re.search(rf"10 \S+ images: levels {re.escape(f'{begin:g}')} to \S+ become black to white", said), said
    assert not any(of["images"] for of in audit(folder)["depth"]["results"].values())


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_deep_colours_and_transparency(channels: int, tmp_path: Path) -> None:
    """PIL keeps the upper 8 bits of 16 in colour: of 12 bits four would be left."""
    rng = np.random.default_rng(channels)
    pictures = [rng.integers(0, 4096, (SIDE, SIDE, channels)).astype(np.uint16) for _ in range(6)]
    folder = build(tmp_path, [png16(p) for p in pictures])
    found = open_split(folder, "test").fetch_training(np_range(folder, "test")).numpy()
    colours = pictures[0][..., :3] if channels > 2 else pictures[0][..., :1].repeat(3, axis=2)
    assert np.abs(found[0].transpose(1, 2, 0) - np.rint(colours / 4095 * 255)).max() <= 1
    image = decode_fast(png16(pictures[0]), "x", 1, ranges_in(read_info(folder)))
    assert np.array_equal(image.numpy(), found[0])


def test_a_deep_image_is_turned_as_others_are() -> None:
    levels = np.arange(6 * 4, dtype=np.uint16).reshape(6, 4) * 2700
    exif = Image.Exif()
    for orientation, turn in {1: 0, 3: 2, 6: 3, 8: 1}.items():
        exif[0x0112] = orientation
        data = png16(levels, chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
        found = np.asarray(decode(data, "x", 1, grey=True))
        assert np.abs(found - np.rot90(np.rint(levels / 257), turn)).max() <= 1
        assert ("rotated" in look(data, 1).odd) == (orientation > 1)


def test_the_range_is_the_training_images_and_bits_are_those_of_all(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    bright = [tiff(rng.integers(30_000, 31_000, (SIDE, SIDE)).astype("<u2")) for _ in range(2)]
    dark = [tiff(rng.integers(28_000, 29_000, (SIDE, SIDE)).astype("<u2")) for _ in range(8)]
    depth = read_info(build(tmp_path / "a", bright + dark))["depth"]["u16"]
    assert 28_000 <= depth["low"] < depth["high"] < 29_000 and "percentile of the training" in depth["why"]
    twelve = [png16(rng.integers(0, 4096, (SIDE, SIDE))) for _ in range(2)]
    ten = [png16(rng.integers(0, 1024, (SIDE, SIDE))) for _ in range(8)]
    depth = read_info(build(tmp_path / "b", twelve + ten))["depth"]["u16"]
    assert (depth["low"], depth["high"], depth["images"]) == (0, 4095, 10)


def test_single_hot_pixels_do_not_make_the_others_dark(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    pictures = [rng.integers(0, 4096, (SIDE, SIDE)) for _ in range(10)]
    for picture in pictures:
        picture[3, 3] = 65535
    folder = build(tmp_path, [png16(p) for p in pictures])
    assert read_info(folder)["depth"]["u16"]["high"] == pytest.approx(4095, rel=0.02)
    assert 110 < greys(folder).mean() < 145


def test_what_is_no_number_is_black_and_all_of_it_is_a_bad_image(tmp_path: Path) -> None:
    picture = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE).astype("<f4")
    picture[2] = np.nan
    picture[5] = np.inf
    ranges = {"f32": (0.0, 1.0)}
    found = np.asarray(decode(tiff(picture), "x", 1, True, ranges))
    assert (found[2] == 0).all() and (found[5] == 255).all() and found[-1, -1] == 255
    assert look(tiff(picture), 1).deep.endswith(" 1")
    with pytest.raises(BadImageError, match=r"truncated or damaged .no level is a finite number"):
        look(tiff(np.full((4, 4), np.nan, "<f4")), 1)


def test_a_colour_tiff_of_which_the_lower_bits_are_lost_is_said_or_refused() -> None:
    rng = np.random.default_rng(3)
    deep = tiff(rng.integers(0, 65536, (9, 9, 3)).astype("<u2"))
    assert "deep-tiff" in look(deep, 1).odd
    for way in (lambda data: look(data, 1), lambda data: decode(data, "x", 1), lambda data: decode_fast(data, "x", 1)):
        with pytest.raises(BadImageError, match="upper 8 can be read, and these are nearly empty; save it as PNG"):
            way(tiff(rng.integers(0, 4096, (9, 9, 3)).astype("<u2")))
