"""Images of more than 8 bits a channel: which levels become black and white, one rule for a whole data set.

A file does not say which of its levels mean black and white: a 12-bit camera writes 0 to 4095 into 16 bits, a thermal
one 29,000 to 31,000. A rule for each image would make two equal levels of two images differ, so the range is taken
once, from all images of a data set, and goes with the model that was trained on them.

Letters in the names give shapes: M images, Q quantiles of `QUANTILES`.
"""

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lfm.config.schema import Depth
from lfm.errors import InputError, counted

Ranges = Mapping[str, tuple[float, float]]
"""Kind of image -> the levels that become black and white."""
Levels = NDArray[np.float64]

KINDS = {"u16": "16-bit", "i32": "32-bit", "f32": "floating-point"}
FULL: Ranges = {"u16": (0.0, 65535.0), "i32": (0.0, 2.0**31 - 1), "f32": (0.0, 1.0)}
"""What the type of the levels can hold; of floats the customary range."""
BITS = (8, 10, 12, 14, 16)
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
LEAST, P01, P05, P95, P99, MOST = 0, 1, 2, 6, 7, 8
"""Places in `QUANTILES`."""
INTERLACED = (
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)
)  # fmt: skip
"""Passes of a PNG: first column and row, and their steps."""
NEARLY = 8
"""Grey levels, of 255, that are nearly black."""
SAMPLE = 1 << 18
"""Levels of an image from which its inner quantiles are taken."""
FILLED, FILLED_FLOATS = 1 / 8, 1 / 2
"""Least share of a customary range that the images must span for `auto` to take it: integers, and floats above 1."""
FAR = 100
"""Widths of the range beyond black or white at which a level is no picture any more: 1e30, or -9999 for no value."""


def kind_of(image: Image.Image, png_depth: int) -> str:
    """A key of `KINDS`, or nothing for images of 8 bits.

    Args:
        image: as it was opened.
        png_depth: bits a channel, if it is a PNG.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM") or png_depth == 16:
        return "u16"  # PIL scales a PGM of any depth to 16 bits
    return {"I": "i32", "F": "f32"}.get(image.mode, "")


def levels_of(image: Image.Image, data: bytes | memoryview) -> Levels:
    """The levels of a deep image as they stand in the file, (H, W) or (H, W, 3); transparency is dropped.

    Raises:
        ValueError: no level is a number.
    """
    if image.mode in ("RGB", "RGBA", "LA"):  # of a deep PNG in colour PIL keeps the upper 8 bits alone
        image.load()  # finds damage, of which torchvision's libpng would write to stderr
        return _png(_pixels_alone(bytes(data)))
    levels = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if image.mode == "I" and tags.get(258) == (32,) and tags.get(339, (1,)) in (1, (1,)):
        levels = levels.view(np.uint32)  # PIL reads unsigned levels as signed
    with np.errstate(all="ignore"):  # a signalling NaN
        found = levels.astype(np.float64)
    if not np.isfinite(found).any():
        raise ValueError("no level is a finite number")
    return found


def _pixels_alone(png: bytes) -> bytes:
    """The PNG's head and pixels with right checksums, which libpng looks at and PIL does not."""
    width, height = struct.unpack_from(">II", png, 16)
    packed, at = b"", 8
    while at + 12 <= len(png):
        (size,) = struct.unpack_from(">I", png, at)
        if png[at + 4 : at + 8] == b"IDAT":
            packed += png[at + 8 : at + 8 + size]
        at += 12 + size
    sample = 2 * {2: 3, 4: 2, 6: 4}.get(png[25], 1)
    passes = INTERLACED if png[28] else ((0, 0, 1, 1),)
    sides = [(len(range(x, width, dx)), len(range(y, height, dy))) for x, y, dx, dy in passes]
    size = sum(rows * (1 + columns * sample) for columns, rows in sides if columns)
    pixels = zlib.compress(zlib.decompressobj().decompress(packed, size), 0)
    parts = (b"IHDR" + png[16:29], b"IDAT" + pixels, b"IEND")
    return png[:8] + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts
    )


def _png(data: bytes) -> Levels:
    import torch
    from torchvision.io import decode_png

    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    found: Levels = decode_png(encoded).permute(1, 2, 0).numpy().astype(np.float64)
    return found[:, :, :3] if found.shape[2] > 2 else found[:, :, 0]


def to_eight_bits(levels: Levels, low: float, high: float) -> Image.Image:
    """The image in mode L or RGB: `low` and below are black, `high` and above white, linear between.

    Args:
        levels: of `levels_of`; what is no number is black.
        low: level of black.
        high: level of white.
    """
    with np.errstate(all="ignore"):  # levels near the end of what floats hold
        grey = np.nan_to_num((levels - low) * (255 / (high - low)), nan=0.0, posinf=255.0, neginf=0.0)
    return Image.fromarray(grey.clip(0, 255).round().astype(np.uint8))


def describe(kind: str, levels: Levels) -> str:
    """The kind and the `QUANTILES` of an image's levels, as its row in the table keeps them."""
    flat = levels[np.isfinite(levels)]
    inner = np.quantile(flat[:: max(1, len(flat) // SAMPLE)], QUANTILES[1:-1])
    return " ".join([kind, *(f"{value:.9g}" for value in (flat.min(), *inner, flat.max()))])


def choose(config: Depth, seen: Sequence[str], training: Sequence[bool]) -> dict[str, dict[str, Any]]:
    """The rule of a data set.

    Args:
        config: `data.depth`.
        seen: of `describe`, or empty for images of 8 bits; of all images.
        training: whether each is a training image: quantiles are of these alone.

    Returns:
        Kind -> `low` and `high`, `why`, and the number of `images`; only kinds that there are.
    """
    found: dict[str, dict[str, Any]] = {}
    trains = np.array(training, bool)
    for kind in KINDS:
        rows = [i for i, text in enumerate(seen) if text.startswith(kind)]
        if rows:
            all_MQ = quantiles_of([seen[i] for i in rows])
            train_MQ = all_MQ[trains[rows]] if trains[rows].any() else all_MQ
            low, high, why = _range(config, kind, all_MQ, train_MQ)
            found[kind] = {"low": low, "high": high if high > low else low + 1, "why": why, "images": len(rows)}
    return found


def quantiles_of(seen: Sequence[str]) -> Levels:
    """(M, Q) of what `describe` gave."""
    return np.array([text.split(" ")[1:] for text in seen], np.float64).reshape(-1, len(QUANTILES))


def _range(config: Depth, kind: str, all_MQ: Levels, train_MQ: Levels) -> tuple[float, float, str]:
    if not isinstance(config, str):
        return config[0], config[1], "as data.depth says"
    if config == "full":
        return *FULL[kind], "all that the type holds"
    # Robust against single pixels that are hot or dead, and against single images.
    low, high = (float(np.quantile(train_MQ[:, place], share)) for place, share in ((P01, 0.01), (P99, 0.99)))
    percentiles = (low, high, "the 1st and 99th percentile of the training images")
    if config == "percentile":
        return percentiles
    for begin, end, share, why in _customary(kind, float(all_MQ[:, LEAST].min()), float(all_MQ[:, MOST].max())):
        if min(high, end) - max(low, begin) >= share * (end - begin):
            return begin, end, why
    return percentiles


def _customary(kind: str, least: float, most: float) -> list[tuple[float, float, float, str]]:
    """The range that holds all levels and is in use: black, white, share that must be filled, and its name."""
    if kind == "f32" and least >= -1 and most <= 1:
        begin = 0.0 if least >= 0 else -1.0
        return [(begin, 1.0, FILLED, f"floats of {begin:g} to 1")]
    bits = next((bits for bits in BITS if least >= 0 and most < 2**bits), 0)
    share = FILLED_FLOATS if kind == "f32" else FILLED
    return [(0.0, 2.0**bits - 1, share, f"{bits} bits hold every level")] if bits else []


def ranges_in(info: Mapping[str, Any]) -> Ranges:
    """The ranges that a data set artifact or a model keeps in its info.json."""
    return {kind: (float(of["low"]), float(of["high"])) for kind, of in (info.get("depth") or {}).items()}


def range_of(kind: str, ranges: Ranges) -> tuple[float, float]:
    """Black and white of a kind.

    Raises:
        InputError: an image of a kind that was not there when the ranges were taken.
    """
    if kind not in ranges:
        raise InputError(
            f"has {KINDS[kind]} levels, and nothing says which of them are black and white, since the data set had no "
            f"such images; save it with 8 bits, scaled as the images of training were"
        )
    return ranges[kind]


def said(rule: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each kind of deep images."""
    return [
        f"{counted(of['images'], f'{KINDS[kind]} image')}: levels {of['low']:g} to {of['high']:g} become black to "
        f"white ({of['why']}); data.depth changes it"
        for kind, of in rule.items()
    ]


def grey_of(seen: Sequence[str], ranges: Ranges) -> dict[str, NDArray[np.bool_]]:
    """Which deep images come out black, white, black and white alone, much cut off, or have levels far off. (M,) each.

    Args:
        seen: of `describe`, of deep images.
        ranges: the rule.
    """
    level_MQ = quantiles_of(seen)
    low_M, high_M = (np.array([ranges[text.split(" ", 1)[0]][k] for text in seen]) for k in (0, 1))
    grey_MQ = ((level_MQ - low_M[:, None]) / (high_M - low_M)[:, None] * 255).clip(0, 255)
    inner_MQ = grey_MQ[:, P01 : P99 + 1]
    dark_MQ, light_MQ = inner_MQ <= 2, inner_MQ >= 253
    # 16 bits hold nothing that could be far off.
    far_M = np.array([np.inf if text.startswith("u16") else FAR for text in seen]) * (high_M - low_M)
    cut_M = (level_MQ[:, P05] < low_M) | (level_MQ[:, P95] > high_M)
    return {
        "black": (inner_MQ <= NEARLY).all(1),
        "white": (inner_MQ >= 255 - NEARLY).all(1),
        "black and white": (dark_MQ | light_MQ).all(1) & dark_MQ.any(1) & light_MQ.any(1),
        "cut off": cut_M,
        "far off": (level_MQ[:, LEAST] < low_M - far_M) | (level_MQ[:, MOST] > high_M + far_M),
    }
