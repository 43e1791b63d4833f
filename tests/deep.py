"""Files of images with more than 8 bits a channel, written byte by byte where PIL writes none."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def png16(levels: NDArray[Any], before: bytes = b"") -> bytes:
    """A PNG of 16 bits: (H, W) grey or (H, W, 2, 3 or 4); `before` are chunks that stand before the pixels."""
    levels = levels[..., None] if levels.ndim == 2 else levels
    height, width, channels = levels.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    parts = (chunk(b"IHDR", head), before, chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def tiff(levels: NDArray[Any]) -> bytes:
    """A TIFF of the array's type: uint16, int16, int32, uint32 or float32 grey, or uint16 colour."""
    height, width = levels.shape[:2]
    colour, data = levels.ndim == 3, levels.tobytes()
    bits, form = 8 * levels.itemsize, {"u": 1, "i": 2, "f": 3}[levels.dtype.kind]
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 2 if colour else 1, 277: 3 if colour else 1,
            278: height, 279: len(data), 339: form}  # fmt: skip
    entries = sorted([*tags, 273])
    after = 8 + 2 + 12 * len(entries) + 4
    out = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
    for tag in entries:
        if tag == 273:
            out += struct.pack("<HHII", tag, 4, 1, after + 6)
        elif colour and tag == 258:
            out += struct.pack("<HHII", tag, 3, 3, after)
        else:
            out += struct.pack("<HHII", tag, 4 if tag in (256, 257, 278, 279) else 3, 1, tags[tag])
    return out + bytes(4) + struct.pack("<HHH", bits, bits, bits) + data


def pgm(levels: NDArray[Any], most: int) -> bytes:
    """A PGM whose greatest level is `most`."""
    height, width = levels.shape
    return f"P5 {width} {height} {most}\n".encode() + levels.astype(">u2").tobytes()


def jpeg2000(levels: NDArray[np.uint16]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(levels).save(out, "jpeg2000", irreversible=False)
    return out.getvalue()
