"""Encoded images -> pixels, and what is odd about them.

A bad image cannot be used and stops a build; an odd one is used, and the data report lists it.
"""

import hashlib
import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lfm.backbones.towers import Preprocess

if TYPE_CHECKING:
    from torch import Tensor

# Odd, but usable: the data report explains each word.
ODD = {
    "cmyk": "printing colours, converted to RGB",
    "16-bit": "16 bits a channel, scaled to 8",
    "animated": "several frames, the first is used",
    "rotated": "turned by its EXIF or XMP orientation",
    "alpha": "transparency, dropped",
    "tiny": "at most 8 pixels wide or high",
}
TINY = 8
DRAFT = (72, 64)
"""Smallest size to decode at: eight pixels for each of the hash's."""
_ORIENTATION = 0x0112
_TURNED = range(2, 9)
"""Orientations that PIL's exif_transpose turns."""


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


def _open(data: bytes | memoryview, max_megapixels: float) -> Image.Image:
    if not data:
        raise BadImageError("has zero bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL warns of bombs; our own limit comes next
            image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise BadImageError(f"is far above data.max_megapixels = {max_megapixels:g}") from error
    except _UNREADABLE as error:
        raise BadImageError("is no image, or of a format PIL does not know") from error
    megapixels = image.width * image.height / 1e6
    if megapixels > max_megapixels:
        raise BadImageError(
            f"has {image.width} x {image.height} pixels, above data.max_megapixels = {max_megapixels:g}"
        )
    return image


# What PIL raises on damaged files, over all its formats.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, zlib.error, MemoryError)


def look(data: bytes, max_megapixels: float) -> Look:
    """Read the whole image once, at the smallest scale its format can be decoded at.

    Raises:
        BadImageError: empty, no image, truncated, or too large.
    """
    image = _open(data, max_megapixels)
    width, height, mode = image.width, image.height, image.mode
    try:
        odd = [
            name
            for name, found in (
                ("cmyk", mode == "CMYK"),
                ("16-bit", mode.startswith("I") or mode == "F" or _png_depth(data) == 16),
                ("animated", getattr(image, "n_frames", 1) > 1),
                ("rotated", _turned(image)),
                ("alpha", mode in ("RGBA", "LA", "PA") or "transparency" in image.info),
                ("tiny", min(width, height) <= TINY),
            )
            if found
        ]
        # JPEG: grey alone, at up to an eighth of the size, which still reads every byte.
        image.draft("L", DRAFT)
        small = eight_bits(image).convert("L").resize((9, 8), Image.Resampling.BOX)
    except _UNREADABLE as error:
        raise BadImageError(f"is truncated or damaged ({error})") from error
    grey = np.asarray(small, np.int16)
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    return Look(
        width, height, mode, hashlib.sha256(data).hexdigest(), int.from_bytes(bits.tobytes(), "big"), tuple(odd)
    )


def _turned(image: Image.Image) -> bool:
    """Whether the image is to be turned, by EXIF (a PNG's may be a text, too) or by XMP: as PIL's exif_transpose."""
    if image.format == "PNG":
        image.load()  # what tells it may stand behind the pixels
    return image.getexif().get(_ORIENTATION) in _TURNED


def _png_depth(data: bytes) -> int:
    return data[24] if data[:4] == b"\x89PNG" and len(data) > 24 else 8


def eight_bits(image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel; PIL's own conversion of 16-bit grey would clip instead of scaling."""
    if image.mode.startswith("I") or image.mode == "F":
        deep = np.asarray(image, np.float64)
        if deep.max(initial=0) > 255:
            deep = deep / 257
        return Image.fromarray(deep.clip(0, 255).round().astype(np.uint8))
    return image


def decode(data: bytes | memoryview, name: str, max_megapixels: float, grey: bool = False) -> Image.Image:
    """The image, upright, in RGB (or grey) of 8 bits.

    Args:
        data: its encoded bytes.
        name: what an error calls it.
        max_megapixels: most millions of pixels.
        grey: give mode L.

    Raises:
        BadImageError: it cannot be decoded; the message begins with the name.
    """
    try:
        image = _open(data, max_megapixels)
        if _turned(image):
            image = ImageOps.exif_transpose(image)
        return eight_bits(image).convert("L" if grey else "RGB")
    except BadImageError as error:
        raise BadImageError(f"{name} {error}") from error
    except _UNREADABLE as error:
        raise BadImageError(f"{name} is truncated or damaged ({error})") from error


def decode_fast(data: bytes | memoryview, name: str, max_megapixels: float) -> "Tensor":
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
    except RuntimeError:  # damaged, or a torchvision without its codecs: PIL tells which
        pass
    return torch.from_numpy(np.array(decode(data, name, max_megapixels))).permute(2, 0, 1)


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
