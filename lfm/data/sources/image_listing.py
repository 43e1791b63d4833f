"""Images of one's own as they are found: where each is, the label it was given, and what tells that it changed."""

import os
import posixpath
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from lfm.data.sources.base import stamp_of
from lfm.errors import InputError, counted
from lfm.storage import s3

READERS = 16


@dataclass
class Found:
    """Images with the label they were given, before classes are numbered."""

    path: list[str]
    name: list[str]
    """Path from the root, or as the list has it."""
    stamp: list[str]
    """Size and time, or ETag: changes with the bytes."""
    label: list[str]
    split: list[int]
    where: Callable[[int], str]
    """What an error calls image i."""
    spaces: bool
    """Whether underscores in a label stand for spaces."""
    numbers: bool = False
    """Whether labels are class numbers rather than names."""
    raw: list[bytes] = field(default_factory=list)


def absolute(place: str) -> str:
    """A folder or file as an absolute path or an s3:// address, without a slash at its end."""
    if s3.is_remote(place):
        return f"s3://{place[5:].rstrip('/')}"
    return str(Path(place).expanduser().absolute())


def resolve(base: str, path: str) -> str:
    """Absolute and in one spelling, so that the same file is seen to be the same."""
    if s3.is_remote(path):
        return path
    whole = path if path.startswith("/") else f"{base}/{path}"
    if "./" not in path and "//" not in path:
        return whole
    return f"s3://{posixpath.normpath(whole[5:])}" if s3.is_remote(whole) else os.path.normpath(whole)


def first_few(names: Sequence[str] | set[str]) -> str:
    """The first five names, for an error; those of a set in alphabetical order."""
    some = sorted(names) if isinstance(names, set) else names
    return ", ".join(some[:5]) + (", ..." if len(some) > 5 else "")


def stamps(path: list[str]) -> list[str]:
    """Size and time (or ETag) of each file.

    Raises:
        InputError: files that do not exist; how many, and the first five.
    """
    remote = _list_folders({each.rpartition("/")[0] for each in path if s3.is_remote(each)})
    stamp, missing = [], []
    for each in path:
        if s3.is_remote(each):
            status = remote.get(each, "")
        else:
            try:
                found = os.stat(each)  # noqa: PTH116  a Path takes three times as long
                status = stamp_of(found) if stat.S_ISREG(found.st_mode) else ""
            except (OSError, ValueError):  # ValueError: a NUL byte in the path
                status = ""
        stamp.append(status)
        if not status:
            missing.append(each)
    if missing:
        raise InputError(
            f"{len(missing):,} of {counted(len(path), 'listed image')} "
            f"{'is no file' if len(missing) == 1 else 'are no files'} ({first_few(missing)}); correct the paths, "
            f"or set data.images to the folder that they start from"
        )
    return stamp


def _list_folders(folders: set[str]) -> dict[str, str]:
    """Address -> size and ETag of all objects in these folders of buckets."""

    def inside(folder: str) -> bool:
        parts = folder.split("/")
        return any("/".join(parts[:k]) in folders for k in range(3, len(parts)))

    with ThreadPoolExecutor(READERS) as pool:
        items = chain.from_iterable(pool.map(s3.listing, [folder for folder in folders if not inside(folder)]))
        return {item.uri: f"{item.size} {item.etag}" for item in items}
