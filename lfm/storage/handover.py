"""How a step hands its result to the next: as a pointer into the store where both see it, else as the folder itself.

Kubeflow Pipelines uploads what a step leaves and downloads it for every consumer, before the program starts. Where the
steps share LFM_HOME (LFM_SHARED_HOME is set) or LFM_STORE, that would be one more copy of a data set up and several
down in every run; a pointer is a file of some hundred bytes, which outlives nothing but itself.
"""

import json
import os
import shutil
from pathlib import Path

from filelock import FileLock

from lfm.errors import InputError
from lfm.progress import say
from lfm.storage.artifact import MANIFEST, copy_to, home, read_manifest, verify
from lfm.storage.store import is_whole_at, pull, push, shared

POINTER = "pointer.json"
"""The one file of a result that is handed over as a pointer: kind and key, which name its folder in the store, and
content, the hash of what is there."""

LARGEST_FILE = 10_000 * 5 * 2**20
"""Bytes of a file that a step may leave to KFP 2.17, which uploads it in at most 10,000 parts of 5 MiB."""
Files = tuple[tuple[str, int, int, int], ...]
_known: dict[Path, Files] = {}
"""Folder -> its files when this process last built or checked them; unchanged ones are not read again."""


def hand_over(folder: Path, out: str | Path) -> None:
    """Leave an artifact of the store as an output of a step.

    Args:
        folder: Intact artifact, as `build_once` returns it.
        out: Folder of the output; what is there is replaced.
    """
    out = Path(out)
    if not _others_see(folder):
        _check_sizes(folder)
        copy_to(folder, out)
        return
    if out.is_dir():
        shutil.rmtree(out)  # KFP makes the output folder before the step runs
    out.mkdir(parents=True)
    pointer = {"kind": folder.parent.name, "key": folder.name, "content": read_manifest(folder)["content"]}
    (out / POINTER).write_text(json.dumps(pointer))
    _known[folder] = _files(folder)


def _check_sizes(folder: Path) -> None:
    """Refuse what Kubeflow Pipelines cannot upload before an hour goes into the attempt.

    Raises:
        InputError: a file is too large.
    """
    if not os.environ.get("LFM_PIPELINE_RUN"):
        return
    size, largest = max((path.stat().st_size, path) for path in folder.rglob("*") if path.is_file())
    if size > LARGEST_FILE:
        raise InputError(
            f"{largest.name} has {size / 1e9:.0f} GB, and Kubeflow Pipelines can hand over files of "
            f"{LARGEST_FILE / 1e9:.0f} GB: give the steps one volume (home: in the cluster file) or LFM_STORE, or set "
            "data.decode=each-time, which keeps the images as they are, in many files"
        )


def _others_see(folder: Path) -> bool:
    """Whether the other steps find this artifact in the store; one that LFM_STORE lacks is sent there."""
    if os.environ.get("LFM_SHARED_HOME"):
        return True
    remote = shared(folder.parent.name, folder.name)
    if remote is None:
        return False
    try:
        if not is_whole_at(remote, folder):
            push(folder, remote)
    except InputError as error:
        say(f"warning: handed over whole, since it is not in the shared store: {error}")
        return False
    return True


def resolve(path: str, step: str) -> str:
    """The folder of an artifact that a step left, checked against its pointer; fetched from LFM_STORE if need be.

    Args:
        path: Output of the step: a pointer, or the artifact itself.
        step: Component that makes it, for the error.

    Raises:
        InputError: It is neither here nor in the store any more, or its bytes changed.
    """
    place = Path(path)
    if (place / MANIFEST).is_file():
        return path
    remedy = f"run the pipeline again: its step {step} makes it again (Retry would keep the step that succeeded)"
    try:
        pointer = json.loads((place / POINTER).read_text())
        kind, key, content = (str(pointer[name]) for name in ("kind", "key", "content"))
    except (OSError, ValueError, KeyError, TypeError) as error:  # what an emptied bucket or a damaged file comes to
        raise InputError(f"nothing is left in {path}, was the pipeline root emptied? {remedy}") from error
    folder, remote = home() / "store" / kind / key, shared(kind, key)
    if _is_intact(folder, content):
        return str(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # of `build_once`: whoever makes or fetches it now is waited for
        if not _is_intact(folder, content):
            _fetch(folder, content, remote, f"the {kind} {key} is not in the store any more", remedy)
    return str(folder)


def _fetch(folder: Path, content: str, remote: str | None, what: str, remedy: str) -> None:
    if folder.is_dir():
        try:
            found = verify(folder)["content"]
        except InputError as error:
            if remote is None:
                raise InputError(f"{what}: {str(error).partition(';')[0]}; {remedy}") from error
            say(f"warning: {str(error).partition(';')[0]}; it is taken from the shared store again")
            shutil.rmtree(folder)
        else:
            raise InputError(f"{what}: {folder} was made again with other bytes ({found}, not {content}); {remedy}")
    if remote is None or not pull(remote, folder, content):
        looked = f"neither {folder} nor {remote} has it" if remote else f"there is no {folder}"
        raise InputError(f"{what}: {looked}; {remedy}")
    _known[folder] = _files(folder)


def _is_intact(folder: Path, content: str) -> bool:
    """Whether the folder holds this content, every byte of it."""
    try:
        files = _files(folder)
        if _known.get(folder) == files:
            return bool(read_manifest(folder)["content"] == content)
        found = verify(folder)["content"]
    except (InputError, OSError):
        return False
    _known[folder] = files
    return bool(found == content)


def _files(folder: Path) -> Files:
    """Name, inode, size and time of change of each file: these differ once its bytes were written again."""
    found = ((path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file())
    return tuple((str(path.relative_to(folder)), s.st_ino, s.st_size, s.st_mtime_ns) for path, s in found)
