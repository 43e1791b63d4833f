"""Odd images are used, bad ones are named: in both ways of decoding."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lfm.data.decoding import ODD, BadImageError, decode, decode_fast, look
from lfm.data.images import open_split
from lfm.errors import InputError
from tests.data_cases import AS_IS, files, made
from tests.deep import tiff
from tests.pictures import encoded, photo

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
