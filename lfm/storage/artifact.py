"""What a step leaves behind: a folder that is complete or absent, named by its content.

A step's key is the hash of everything its result depends on: the configuration it reads, the artifacts it
was given, the source code that computes it. The result is built in a temporary folder next to its final place, gets a
manifest with a checksum for every file, and is renamed into place; a killed step leaves nothing half done.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lfm import __version__
from lfm.errors import InputError

MANIFEST = "manifest.json"
# Files in this folder of an artifact say how it came about (times, say). They are checksummed, but the artifact's
# content, which names what is made from it, is the same without them.
NOTES = "notes"
SCHEMA = 1


def home() -> Path:
    """Folder for data, artifacts, checkpoints and the MLflow database: LFM_HOME, else `.lfm` here."""
    return Path(os.environ.get("LFM_HOME") or ".lfm").absolute()


def content_key(value: Any) -> str:
    """Hash of a JSON-like value, independent of the order of its keys; 32 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def sha256_file(path: Path) -> str:
    """Checksum of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact.

    Raises:
        InputError: the folder is no artifact of ours, or of another schema version.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        if not isinstance(manifest["files"], dict):
            raise TypeError("files is no table")
    except (OSError, ValueError, TypeError, KeyError) as error:  # what a damaged file can come to
        raise InputError(f"{folder} is not an artifact: {MANIFEST} is missing or broken; run its step again") from error
    if manifest.get("schema") != SCHEMA:
        raise InputError(
            f"{folder} has schema {manifest.get('schema')}, this version reads {SCHEMA}; run its step again"
        )
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """The manifest, after every file's checksum was compared.

    Raises:
        InputError: a file is missing or its bytes changed.
    """
    manifest = read_manifest(folder)
    if manifest.get("content") != _content_of(manifest["files"]):
        raise InputError(f"{folder / MANIFEST} was changed by hand; delete {folder} and run again")
    for name in damaged(folder, manifest):
        raise InputError(f"{folder / name} is missing or does not match its checksum; delete {folder} and run again")
    return manifest


def damaged(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """The files of an artifact that are missing or were changed, relative to its folder."""
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != expected:
            yield name


def _content_of(files: dict[str, str]) -> str:
    return content_key({name: checksum for name, checksum in files.items() if not name.startswith(f"{NOTES}/")})


@contextmanager
def publishing(folder: Path, kind: str, made_by: dict[str, Any]) -> Iterator[Path]:
    """Yield an empty folder; on success write its manifest and rename it to `folder`.

    Args:
        folder: final place; what is there already is replaced.
        kind: "dataset", "text", "model", "metrics", "checkpoint".
        made_by: JSON-like description of what made it; kept in the manifest.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    aside.mkdir()
    try:
        yield aside
        paths = [path for path in sorted(aside.rglob("*")) if path.is_file()]
        readable = 0o444 & ~_umask()  # safetensors writes for its user alone; a server runs as another
        for path in paths:
            path.chmod(path.stat().st_mode | readable)
        files = {str(path.relative_to(aside)): sha256_file(path) for path in paths}
        manifest = {
            "schema": SCHEMA,
            "kind": kind,
            "content": _content_of(files),
            "files": files,
            "made_by": {"lfm": __version__, **made_by},
        }
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
        if folder.exists():
            old = aside.with_suffix(".old")
            folder.rename(old)
            aside.rename(folder)
            shutil.rmtree(old)
        else:
            aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def link(source: str | Path, target: str | Path) -> None:
    """A hard link where the file system allows one, a copy elsewhere. Artifacts do not change, so they may share."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def copy_to(source: Path, target: Path) -> None:
    """Give `target` the files of `source`: hard links where the file system allows, copies elsewhere."""
    if target.is_dir():
        shutil.rmtree(target)  # KFP makes the output folder before the step runs
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target, copy_function=link)


def check_writable(folder: Path) -> None:
    """Create the folder and a file in it.

    Raises:
        InputError: it cannot be written to.
    """
    probe = folder / f".write-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(4096))  # nothing at all would fit on a full disk
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"cannot write to {folder} ({error.strerror}); set LFM_HOME or --home to a folder you can write to"
            f"{whose_volume(folder)}"
        ) from error


def whose_volume(folder: Path) -> str:
    """More words on a folder that cannot be written, where it is on a mounted volume of another user; else empty.

    A new block volume belongs to root, and Kubeflow Pipelines gives the pods of its steps no fsGroup.
    """
    there = next(path for path in (folder, *folder.parents) if os.path.exists(path))  # noqa: PTH110  never raises
    owner = there.stat()
    if not there.is_mount() or os.getuid() in (0, owner.st_uid) or os.access(there, os.W_OK):
        return ""
    return (
        f". The volume at {there} is of user {owner.st_uid} and group {owner.st_gid}, this is user {os.getuid()}: on "
        f"Kubernetes apply the Job lfm-volume again (docs/cluster.md), elsewhere `chown {os.getuid()} {there}` as root"
    )
