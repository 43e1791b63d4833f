"""Fashion-MNIST's files."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lfm.config.schema import DataConfig
from lfm.data.sources.base import Arrays, Joined, Source
from lfm.data.sources.fashion_mnist import SHA256, load_fashion_mnist

LABELS = "t10k-labels-idx1-ubyte"


def load(folder: Path | str) -> Source:
    return load_fashion_mnist(DataConfig(name="fashion-mnist", source=str(folder)))


def pixels(source: Source) -> NDArray[np.uint8]:
    """The training images."""
    assert isinstance(source.images, Joined) and isinstance(source.images.parts[0], Arrays)
    return source.images.parts[0].pixels


def flipped(raw: bytes, place: int) -> bytes:
    return raw[:place] + bytes([raw[place] ^ 0xFF]) + raw[place + 1 :]


# What happens to the bytes of a real gzipped label file -> what the message must say.
DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "gzip truncated": (lambda gz: gz[: len(gz) // 2], "truncated"),
    "gzip cut inside its header": (lambda gz: gz[:5], "truncated"),
    "no gzip at all": (lambda gz: b"<html>please log in</html>", "not a gzip file"),
    "empty": (lambda gz: b"", "not an idx file"),
    "a flipped byte in the compressed data": (lambda gz: flipped(gz, 137), "truncated|gzip|damaged|corrupt"),
    "a flipped byte in gzip's own checksum": (lambda gz: flipped(gz, len(gz) - 8), "truncated|gzip|damaged|corrupt"),
    "idx truncated": (lambda gz: gzip.compress(gzip.decompress(gz)[:-1]), "10,007 bytes.* promises 10,008"),
    "idx cut inside its header": (lambda gz: gzip.compress(gzip.decompress(gz)[:6]), "truncated inside its header"),
    "idx with bytes too many": (lambda gz: gzip.compress(gzip.decompress(gz) + b"\0"), "10,009 .* promises 10,008"),
    "wrong magic": (lambda gz: gzip.compress(b"\x01" + gzip.decompress(gz)[1:]), "not an idx file"),
    "floats instead of bytes": (
        lambda gz: gzip.compress(struct.pack(">BBBBIf", 0, 0, 13, 1, 1, 1.0)),
        "not an idx file of unsigned bytes",
    ),
    "one label changed": (
        lambda gz: gzip.compress(flipped(gzip.decompress(gz), 5000)),
        f"not the published file.*{SHA256[LABELS][:12]}",
    ),
}
