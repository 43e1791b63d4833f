"""Whether listed images are there, and a checksum that changes when one of them does. No image is opened."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lfm.data.sources.base import stamp_of
from lfm.errors import InputError, counted
from lfm.storage import s3

SHOWN = 5  # missing images that an error names
THREADS = 8  # folders looked into at a time: a network file system answers slowly, but many at once


def fingerprint(root: str, paths: Sequence[str], files: Iterable[Path] = ()) -> str:
    """Checksum of listed images by (path, size, time of change), in their order, and of the lists' bytes.

    Images at s3:// count by their address alone.

    Args:
        root: folder or s3:// prefix that relative paths start from.
        paths: as listed.
        files: the lists, whose bytes count.

    Raises:
        InputError: images are missing; the message has their number and the first five.
    """
    return fingerprint_of(root, paths, files, stamps_of(root, paths))


def fingerprint_of(root: str, paths: Sequence[str], files: Iterable[Path], stamps: Sequence[str]) -> str:
    """`fingerprint` of images whose stamps are known."""
    facts = [
        f"{path}\0{stamp}\n" if stamp else f"{join(root, path)}\n" for path, stamp in zip(paths, stamps, strict=True)
    ]
    digest = hashlib.blake2b("".join(facts).encode("utf-8", "surrogateescape"), digest_size=16)
    for file in files:
        digest.update(hashlib.blake2b(file.read_bytes()).digest())
    return digest.hexdigest()


def stamps_of(root: str, paths: Sequence[str]) -> list[str]:
    """Size and time of each listed image, nothing of those at s3://.

    Each folder is read once, so that a million images take seconds.

    Raises:
        InputError: images are missing; the message has their number and the first five.
    """
    fulls = [join(root, path) for path in paths]
    local = [i for i, full in enumerate(fulls) if not s3.is_remote(full)]
    stamps, missing = [""] * len(paths), []
    for i, fact in zip(local, _facts([fulls[i] for i in local]), strict=True):
        stamps[i] = fact
        if not fact:
            missing.append(fulls[i])
    if missing:
        raise InputError(
            f"{len(missing):,} of {counted(len(paths), 'listed image')} "
            f"{'is' if len(missing) == 1 else 'are'} missing: {', '.join(missing[:SHOWN])}"
            f"{' ...' if len(missing) > SHOWN else ''}; put them there, or set data.images to the folder that "
            f"the paths in the list start from"
        )
    return stamps


def join(root: str, path: str) -> str:
    """The path itself if it is absolute or at s3://, else below the root."""
    return path if s3.is_remote(path) or path.startswith("/") else f"{root.rstrip('/')}/{path}"


def _facts(fulls: Sequence[str]) -> list[str]:
    """Of each local file "size time", or "" if there is no such file."""
    facts = [""] * len(fulls)
    inside: dict[str, list[int]] = {}
    for i, full in enumerate(fulls):
        inside.setdefault(full.rpartition("/")[0], []).append(i)

    def look(folder: str) -> None:
        try:
            with os.scandir(folder or "/") as entries:
                there = {entry.name: entry for entry in entries}
        except OSError:
            return
        for i in inside[folder]:
            entry = there.get(fulls[i].rpartition("/")[2])
            if entry and entry.is_file():
                facts[i] = stamp_of(entry.stat())

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(look, inside))
    return facts
