"""Fashion-MNIST (Xiao et al. 2017): where its files come from, and how they are read."""

import gzip
import hashlib
import http.client
import shutil
import struct
import subprocess
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from lfm.config.schema import DataConfig
from lfm.data.sources import debian
from lfm.data.sources.base import Source
from lfm.errors import InputError
from lfm.progress import bar, say
from lfm.storage.artifact import home

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
# Of the bytes inside the gzip files: packers differ in the compressed bytes.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
PACKAGE = "dataset-fashion-mnist"
CONNECT_SECONDS = 10
PACKAGE_SECONDS = 60


def load_fashion_mnist(config: DataConfig) -> Source:
    """60,000 training and 10,000 test images, 28 x 28 grey, 10 named classes.

    Args:
        config: `source` holds the four idx files, gzipped or not; empty: the download folder, filled if need be.

    Raises:
        InputError: files missing, truncated, altered, or nowhere to be had.
    """
    place = Path(config.source) if config.source else home() / "downloads" / "fashion-mnist"
    if config.source or all(_find(place, name) for name in SHA256):
        say(f"Fashion-MNIST from the local folder {place}")
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_suffix(".lock")):  # another process may be fetching the same files
            if not all(_find(place, name) for name in SHA256):
                _fetch(place)
    array = {name: read_idx(_require(place, name), SHA256[name] if config.verify else None) for name in SHA256}
    return Source.from_arrays(
        (array["train-images-idx3-ubyte"], array["train-labels-idx1-ubyte"]),
        (array["t10k-images-idx3-ubyte"], array["t10k-labels-idx1-ubyte"]),
        CLASSES,
        hashlib.sha256(b"".join(a.tobytes() for a in array.values())).hexdigest(),
    )


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _require(folder: Path, name: str) -> Path:
    path = _find(folder, name)
    if path is None:
        raise InputError(
            f"{folder} has no {name}.gz; put the four files of Fashion-MNIST there, "
            f"or leave data.source empty to fetch them"
        )
    return path


def read_idx(path: Path, sha256: str | None = None) -> NDArray[np.uint8]:
    """A whole idx file of unsigned bytes, gzipped or not.

    Raises:
        InputError: not idx, truncated, or (if given) another checksum.
    """
    fix = f"delete {path} and run again to fetch it"
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is truncated or not a gzip file ({error}); {fix}") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise InputError(f"{path} is not an idx file of unsigned bytes; {fix}")
    header = 4 + 4 * raw[3]
    if len(raw) < header:
        raise InputError(f"{path} is truncated inside its header; {fix}")
    shape = struct.unpack(f">{raw[3]}I", raw[4:header])
    expected = header + int(np.prod(shape, dtype=np.int64))
    if len(raw) != expected:
        raise InputError(f"{path} is truncated: {len(raw):,} bytes, its header promises {expected:,}; {fix}")
    if sha256 and hashlib.sha256(raw).hexdigest() != sha256:
        raise InputError(f"{path} is not the published file: its sha256 is not {sha256[:12]}...; {fix}")
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)


def _fetch(place: Path) -> None:
    """Fill `place` from the first source that answers; all or nothing."""
    sources: list[tuple[str, Callable[[Path], None]]] = [
        ("torchvision's mirror", _from_mirror),
        (f"Debian's package {PACKAGE}", _from_debian),
    ]
    failures = []
    for title, fetch in sources:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                fetch(Path(scratch))
                all_found = [_require(Path(scratch), name) for name in SHA256]
                for found, sha256 in zip(all_found, SHA256.values(), strict=True):
                    read_idx(found, sha256)
                place.mkdir(parents=True, exist_ok=True)
                for found in all_found:
                    aside = place / f".{found.name}.tmp"
                    shutil.copyfile(found, aside)
                    aside.rename(place / found.name)
            except (OSError, ValueError, http.client.HTTPException, subprocess.SubprocessError) as error:
                reason = error.reason if isinstance(error, urllib.error.URLError) else error
                failures.append(f"{title}: {' '.join(str(reason).split())}")
                say(f"Fashion-MNIST: {title} did not answer, trying the next source")
            else:
                say(f"Fashion-MNIST from {title}, checksums verified, kept in {place}")
                return
    raise InputError(
        f"Fashion-MNIST is not in {place} and cannot be fetched ({'; '.join(failures)}); "
        f"put its four .gz files there or set data.source"
    )


def _from_mirror(scratch: Path) -> None:
    from torchvision.datasets import FashionMNIST  # knows the current address

    for name in SHA256:
        url = f"{FashionMNIST.mirrors[0]}{name}.gz"
        with urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as reply:  # noqa: S310  the address is torchvision's
            size = int(reply.headers.get("Content-Length", 0))
            with (scratch / f"{name}.gz").open("wb") as file, bar(size, "download", "B") as progress:
                while chunk := reply.read(1 << 18):
                    file.write(chunk)
                    progress.update(len(chunk))


def _from_debian(scratch: Path) -> None:
    (package,) = debian.download([PACKAGE], scratch, PACKAGE_SECONDS)
    subprocess.run(["dpkg-deb", "-x", package, scratch / "x"], check=True, capture_output=True)  # noqa: S603, S607
    for name in SHA256:
        shutil.move(scratch / "x/usr/share/datasets/fashion-mnist" / f"{name}.gz", scratch)
