"""What has been unused in LFM_HOME for a while: entries of the store, unfinished work, files of local runs."""

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from lfm.errors import InputError
from lfm.storage.artifact import MANIFEST, home, read_manifest

DAY = 24 * 3600.0


class Old(NamedTuple):
    """A folder that may go.

    Args:
        what: in words.
        path: of the folder.
        used: seconds since 1970 when it was last made or reused.
    """

    what: str
    path: Path
    used: float


def find(before: float, needed: Iterable[str]) -> list[Old]:
    """Folders of LFM_HOME that were last used before this moment.

    Args:
        before: Seconds since 1970.
        needed: Contents of artifacts that stay, with all that they were made from.
    """
    return [*_entries(before, set(needed)), *_leftovers(before)]


def _entries(before: float, needed: set[str]) -> Iterator[Old]:
    manifests: dict[Path, dict[str, Any]] = {}
    for path in sorted((home() / "store").glob(f"*/[!.]*/{MANIFEST}")):
        try:
            manifests[path.parent] = read_manifest(path.parent)
        except InputError:  # damaged: made again by whoever asks for it, and no ground to delete
            continue
    by_content = {manifest["content"]: manifest for manifest in manifests.values()}
    stays, left = set[str](), set(needed)
    while left:
        content = left.pop()
        stays.add(content)
        left |= set(_texts(by_content.get(content, {}).get("made_by"))) & by_content.keys() - stays
    for folder, manifest in manifests.items():
        used = (folder / MANIFEST).stat().st_mtime
        if manifest["content"] not in stays and used < before:
            yield Old(f"{folder.parent.name} {folder.name[:12]}", folder, used)


def _leftovers(before: float) -> Iterator[Old]:
    for pattern, what in (
        ("store/*/.*.tmp", "half of an entry, of a killed step"),
        ("work/*", "checkpoints of a stage that was never finished"),
        ("pipelines/*", "log and outputs of a local run"),
    ):
        for folder in sorted(home().glob(pattern)):
            used = max((path.stat().st_mtime for path in _all_in(folder)), default=time.time())
            if folder.is_dir() and used < before:
                yield Old(f"{what} {folder.name[:12].strip('.')}", folder, used)


def _texts(value: Any) -> Iterator[str]:
    """All texts inside a JSON-like value."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(inner)


def _all_in(folder: Path) -> Iterator[Path]:
    """A folder and what is in it; no link is followed."""
    yield folder
    for place, folders, files in os.walk(folder):
        yield from (Path(place) / name for name in (*folders, *files) if not (Path(place) / name).is_symlink())


def size_of(folders: Iterable[Path]) -> int:
    """Bytes that would be free without these folders: a file of several names counts once all of them are in there."""
    names: dict[tuple[int, int], int] = {}
    links: dict[tuple[int, int], tuple[int, int]] = {}
    for folder in folders:
        for path in _all_in(folder) if folder.is_dir() else ():
            if path.is_file():
                found = path.stat()
                inode = (found.st_dev, found.st_ino)
                names[inode] = names.get(inode, 0) + 1
                links[inode] = (found.st_nlink, found.st_size)
    return sum(size for inode, (there, size) in links.items() if names[inode] >= there)


def remove(folder: Path) -> bool:
    """Remove a folder; whether it is gone. An entry of the store that somebody makes or takes right now stays.

    It is renamed first, so that a reader finds all of it or nothing.
    """
    if folder.parent.parent != home() / "store":
        shutil.rmtree(folder)
        return True
    key = folder.name.strip(".").partition(".")[0]
    with suppress(Timeout), FileLock(folder.with_name(f"{key}.lock")).acquire(timeout=0):  # of `build_once`
        if folder.is_dir():
            aside = folder.with_name(f".{key}.removed.tmp")
            folder.rename(aside)
            shutil.rmtree(aside)
        return True
    return False


def touch(folder: Path) -> None:
    """Note that an artifact was reused."""
    try:
        os.utime(folder / MANIFEST)
    except OSError:  # of another user, or on a disk that is read-only
        return
