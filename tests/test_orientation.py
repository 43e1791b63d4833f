"""What PIL's exif_transpose turns is turned, wherever the orientation stands in the file."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin

from lfm.data.decoding import decode, decode_fast, look
from tests.pictures import encoded, photo

UPRIGHT = photo(7, 24, 16)
T = Image.Transpose
# Orientation -> how the camera held the sensor: what turns the upright picture into the stored one.
STORED_BY = {
    2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_90, 7: T.TRANSVERSE,
    8: T.ROTATE_270,
}  # fmt: skip


def stored(orientation: int) -> Image.Image:
    return UPRIGHT.transpose(STORED_BY[orientation]) if orientation in STORED_BY else UPRIGHT


def exif(orientation: int) -> bytes:
    found = Image.Exif()
    found[0x0112] = orientation
    return found.tobytes()


def tiff_body(orientation: int) -> bytes:
    """EXIF as it stands in a PNG's eXIf."""
    return exif(orientation).removeprefix(b"Exif\0\0")


def xmp(orientation: int, attribute: bool = True) -> bytes:
    given = f' tiff:Orientation="{orientation}"/>' if attribute else (
        f"><tiff:Orientation>{orientation}</tiff:Orientation></rdf:Description>"
    )  # fmt: skip
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"{given}</rdf:RDF></x:xmpmeta>'
    ).encode()


def png(orientation: int, kind: bytes, body: bytes, behind: bool) -> bytes:
    """A PNG with one more chunk, before or behind its pixels."""
    plain = encoded(stored(orientation), "png")
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    at = plain.index(b"IEND") - 4 if behind else plain.index(b"IDAT") - 4
    return plain[:at] + chunk + plain[at:]


def raw_profile(orientation: int) -> bytes:
    """EXIF as ImageMagick writes it into a text: in hexadecimal, compressed."""
    data = exif(orientation)
    text = f"\nexif\n{len(data):8}\n{data.hex()}\n"
    return b"Raw profile type exif\0\0" + zlib.compress(text.encode())


def itxt(orientation: int) -> bytes:
    return b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(orientation)


FORMS: dict[str, Callable[[int], bytes]] = {
    "PNG eXIf": lambda k: png(k, b"eXIf", tiff_body(k), behind=False),
    "PNG eXIf behind the pixels": lambda k: png(k, b"eXIf", tiff_body(k), behind=True),
    "PNG raw profile": lambda k: png(k, b"zTXt", raw_profile(k), behind=False),
    "PNG raw profile behind the pixels": lambda k: png(k, b"zTXt", raw_profile(k), behind=True),
    "PNG XMP": lambda k: png(k, b"iTXt", itxt(k), behind=False),
    "PNG XMP behind the pixels": lambda k: png(k, b"iTXt", itxt(k), behind=True),
    "JPEG EXIF": lambda k: encoded(stored(k), "jpeg", exif=exif(k), quality=95),
    "JPEG XMP": lambda k: encoded(stored(k), "jpeg", xmp=xmp(k), quality=95),
    "JPEG XMP element": lambda k: encoded(stored(k), "jpeg", xmp=xmp(k, attribute=False), quality=95),
    "WebP EXIF": lambda k: encoded(stored(k), "webp", exif=exif(k), lossless=True),
    "WebP XMP": lambda k: encoded(stored(k), "webp", xmp=xmp(k), lossless=True),
    "TIFF": lambda k: encoded(stored(k), "tiff", tiffinfo={0x0112: k}),
    "AVIF": lambda k: encoded(stored(k), "avif", exif=exif(k), quality=100),
    "MPO": lambda k: encoded(stored(k), "mpo", exif=exif(k), quality=95),
}
LOSSLESS = ("PNG", "WebP", "TIFF")


def correlation(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_upright(form: str, orientation: int) -> None:
    data = FORMS[form](orientation)
    oracle = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    found = np.asarray(decode(data, form, 1))
    assert np.array_equal(found, oracle)
    assert np.array_equal(decode_fast(data, form, 1).permute(1, 2, 0).numpy(), oracle)
    upright = np.asarray(UPRIGHT)
    same = np.array_equal(found, upright) if form.startswith(LOSSLESS) else correlation(found, upright) > 0.9
    assert same
    assert ("rotated" in look(data, 1).odd) == (orientation > 1)


@pytest.mark.parametrize("orientation", [0, 1, 9])
def test_orientations_that_mean_nothing_turn_nothing(orientation: int) -> None:
    data = encoded(UPRIGHT, "png", exif=exif(orientation))
    assert np.array_equal(np.asarray(decode(data, "x", 1)), np.asarray(UPRIGHT))
    assert "rotated" not in look(data, 1).odd


def test_a_plain_text_beside_it_changes_nothing() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", 'tiff:Orientation="6"')
    data = encoded(UPRIGHT, "png", pnginfo=info)
    assert np.array_equal(np.asarray(decode(data, "x", 1)), np.asarray(UPRIGHT))
