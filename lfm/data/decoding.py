"""Encoded images -> pixels, and what is odd about them.

A bad image cannot be used and stops a build; an odd one is used, and the data report lists it.
"""

import ctypes
import functools
import hashlib
import io
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lfm.backbones.towers import Preprocess
from lfm.data import depth
from lfm.data.depth import Ranges
from lfm.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

# Odd, but usable: the data report explains each word.
ODD = {
    "cmyk": "printing colours, converted to RGB",
    "deep": "more than 8 bits a channel, scaled to 8 by one rule for all images",
    "no-number": "deep, with levels that are NaN or infinite: NaN becomes black, infinity black or white",
    "deep-tiff": "colour TIFF of more than 8 bits a channel, of which the upper 8 are read, whatever data.depth says",
    "animated": "several frames, the first is used",
    "rotated": "turned by its EXIF or XMP orientation",
    "alpha": "transparency, dropped",
    "tiny": "at most 8 pixels wide or high",
}
TINY = 8
NEARLY_EMPTY = 16
"""Upper 8 bits of 16 that are all below this leave at most 4 of a 12-bit image."""
DRAFT = (72, 64)
"""Smallest size to decode at: eight pixels for each of the hash's."""
_PIL = r"PIL\."
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""Orientation -> what PIL's exif_transpose does."""


class BadImageError(ValueError):
    """The image cannot be used; the message says why, without its name."""


@dataclass(frozen=True)
class Look:
    """What one look at an encoded image tells, the whole of it having been read."""

    width: int
    height: int
    mode: str
    """PIL's mode: L, RGB, CMYK, ..."""
    sha256: str
    """Of the encoded bytes."""
    dhash: int
    """64-bit difference hash: images that look alike differ in few bits."""
    odd: tuple[str, ...]
    """Keys of `ODD`."""
    deep: str = ""
    """Of images with more than 8 bits a channel: their levels, as `lfm.data.depth.describe` has them."""


def _open(data: bytes | memoryview, max_megapixels: float) -> Image.Image:
    if not data:
        raise BadImageError("has zero bytes")
    _hush()
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise BadImageError(f"is far above data.max_megapixels = {max_megapixels:g}") from error
    except Exception as error:  # damaged files come to anything in PIL's readers
        raise BadImageError("is no image, or of a format PIL does not know") from error
    megapixels = image.width * image.height / 1e6
    if megapixels > max_megapixels:
        raise BadImageError(
            f"has {image.width} x {image.height} pixels, above data.max_megapixels = {max_megapixels:g}"
        )
    return image


def _hush() -> None:
    """What PIL warns of names no file and would reach the user raw; what cannot be used is an error of its own.

    Not by `catch_warnings`, which threads must not use. Looked for each time: somebody may have reset the filters.
    """
    if not any(of[0] == "ignore" and of[3] is not None and of[3].pattern == _PIL for of in warnings.filters):
        warnings.filterwarnings("ignore", module=_PIL)
        logging.getLogger("PIL").addHandler(logging.NullHandler())  # without any, Python prints what is logged
        _hush_libtiff()


@functools.cache
def _hush_libtiff() -> None:
    """Damaged TIFFs: libtiff writes to stderr by itself, and PIL, which raises all the same, has no switch for it."""
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libtiff" in line}
    for path in loaded:
        library = ctypes.CDLL(path)
        for setter in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            setter.restype = ctypes.c_void_p
            setter(None)


def look(data: bytes, max_megapixels: float) -> Look:
    """Read the whole image once, at the smallest scale its format can be decoded at; of several frames the first.

    Raises:
        BadImageError: empty, no image, truncated, or too large.
    """
    image = _open(data, max_megapixels)
    width, height, mode = image.width, image.height, image.mode
    try:
        kind = depth.kind_of(image, _png_depth(data))
        turned, deep, cut, numbers = _turned(image), "", _upper_bits_alone(image), True
        clear = mode in ("RGBA", "LA", "PA") or "transparency" in image.info
        if kind:
            levels = depth.levels_of(image, data)
            deep, seen = depth.describe(kind, levels), levels[np.isfinite(levels)]
            numbers = seen.size == levels.size
            # Its own range will do for a hash, which compares levels of one image.
            image = depth.to_eight_bits(levels, float(seen.min()), max(float(seen.max()), float(seen.min()) + 1e-9))
        # JPEG: grey alone, at up to an eighth of the size, which still reads every byte.
        image.draft("L", DRAFT)
        small = image.convert("L").resize((9, 8), Image.Resampling.BOX)
        odd = [
            name
            for name, found in (
                ("cmyk", mode == "CMYK"),
                ("deep", kind != ""),
                ("no-number", not numbers),
                ("deep-tiff", cut),
                ("animated", _animated(data)),
                ("rotated", turned),
                ("alpha", clear),
                ("tiny", min(width, height) <= TINY),
            )
            if found
        ]
    except BadImageError:
        raise
    except Exception as error:
        raise BadImageError(f"is truncated or damaged ({error})") from error
    grey = np.asarray(small, np.int16)
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    return Look(
        width, height, mode, hashlib.sha256(data).hexdigest(), int.from_bytes(bits.tobytes(), "big"), tuple(odd), deep
    )


def _animated(data: bytes) -> bool:
    """Whether there are further frames, whatever is in them; opened by itself, since looking for them may fail."""
    try:
        return bool(getattr(Image.open(io.BytesIO(data)), "is_animated", False))
    except Exception:  # the further frame is damaged; nobody reads it
        return True


def _orientation(image: Image.Image) -> int:
    """As PIL's exif_transpose finds it: in EXIF (a PNG's may be a text, too) or in XMP."""
    if image.format == "PNG":
        image.load()  # what tells it may stand behind the pixels
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF with good pixels
        return 1


def _turned(image: Image.Image) -> bool:
    return _orientation(image) in _TURNS


def _upper_bits_alone(image: Image.Image) -> bool:
    """Whether PIL keeps the upper 8 bits alone: of colour TIFFs with more.

    Raises:
        BadImageError: they are nearly empty, as of 12 bits in 16.
    """
    bits = getattr(image, "tag_v2", {}).get(258, ())
    if len(image.getbands()) < 3 or not bits or max(bits) <= 8:
        return False
    if max(most for _, most in cast("tuple[tuple[int, int], ...]", image.getextrema())[:3]) < NEARLY_EMPTY:
        raise BadImageError(
            "is a colour TIFF of more than 8 bits a channel, of which the upper 8 can be read, and these are nearly "
            "empty; save it as PNG of 16 bits, or with 8"
        )
    return True


def _png_depth(data: bytes | memoryview) -> int:
    begin = bytes(data[:25])  # a view of Arrow's counts its bytes from -128
    return begin[24] if begin[:4] == b"\x89PNG" and len(begin) > 24 else 8


def decode(
    data: bytes | memoryview, name: str, max_megapixels: float, grey: bool = False, ranges: Ranges = depth.FULL
) -> Image.Image:
    """The image, upright, in RGB (or grey) of 8 bits; of several frames the first.

    Args:
        data: its encoded bytes.
        name: what an error calls it.
        max_megapixels: most millions of pixels.
        grey: give mode L.
        ranges: levels of deep images that become black and white.

    Raises:
        BadImageError: it cannot be decoded; the message begins with the name.
    """
    try:
        image = _open(data, max_megapixels)
        if kind := depth.kind_of(image, _png_depth(data)):
            turn = _TURNS.get(_orientation(image))
            image = depth.to_eight_bits(depth.levels_of(image, data), *depth.range_of(kind, ranges))
            image = image if turn is None else image.transpose(turn)
        else:
            _upper_bits_alone(image)
            image = ImageOps.exif_transpose(image) if _turned(image) else image
        return image.convert("L" if grey else "RGB")
    except (BadImageError, InputError) as error:
        raise BadImageError(f"{name} {error}") from error
    except Exception as error:
        raise BadImageError(f"{name} is truncated or damaged ({error})") from error


def decode_fast(data: bytes | memoryview, name: str, max_megapixels: float, ranges: Ranges = depth.FULL) -> "Tensor":
    """`decode` to a tensor (3, H, W) uint8: JPEGs go to torchvision, whose bits are PIL's, without PIL's copies.

    Raises:
        BadImageError: it cannot be decoded; the message begins with the name.
    """
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    try:
        image = _open(data, max_megapixels)
        if image.format == "JPEG" and image.mode == "RGB" and not _turned(image):
            encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            found: Tensor = decode_jpeg(encoded, mode=ImageReadMode.RGB)
            return found
    except BadImageError as error:
        raise BadImageError(f"{name} {error}") from error
    except Exception:  # noqa: S110  damaged, or a torchvision without its codecs: PIL tells which
        pass
    return torch.from_numpy(np.array(decode(data, name, max_megapixels, ranges=ranges))).permute(2, 0, 1)


def fitted(image: Image.Image, to: Preprocess) -> Image.Image:
    """Resize and crop for evaluation, exactly as open_clip does before it makes a tensor."""
    if not to.size:
        return image
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as tv

    mode = InterpolationMode(to.interpolation)
    if to.resize_mode == "squash":
        return tv.resize(image, [to.size, to.size], mode)
    return tv.center_crop(tv.resize(image, to.size, mode), [to.size, to.size])


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 3) uint8."""
    return np.asarray(image, np.uint8)
