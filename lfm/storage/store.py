"""The store: what was made once is taken from it, here or, with LFM_STORE=s3://bucket/folder, by every machine.

Here, an artifact is the folder `LFM_HOME/store/KIND/KEY`. At LFM_STORE it is `KIND/KEY/CONTENT/...` with the pointer
`KIND/KEY/manifest.json` written last: of two machines that make the same one, each leaves a whole one. Checkpoints lie
under `work/KEY`, so that a pod that lost its disk goes on from where another stopped.
"""

import json
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from lfm.errors import InputError
from lfm.progress import say
from lfm.storage import s3
from lfm.storage.artifact import MANIFEST, content_key, copy_to, home, publishing, read_manifest, verify
from lfm.storage.old_entries import touch

NO_CACHE = "LFM_NO_CACHE"
"""Environment variable: the pipeline run makes every result again, and takes only what it made itself."""
PATIENCE = 60.0
"""Seconds to wait at the end of a stage, or at SIGTERM, for the last upload."""


def shared(*path: str) -> str | None:
    """The address of a place at LFM_STORE, if it is set.

    Raises:
        InputError: LFM_STORE is no s3:// address.
    """
    root = os.environ.get("LFM_STORE", "").rstrip("/")
    if not root:
        return None
    if not s3.is_remote(root):
        raise InputError(f"LFM_STORE={root} is no S3 address; write it as s3://BUCKET/FOLDER, or unset it")
    return "/".join([root, *path])


def own_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs that name a result: where `NO_CACHE` is set, the pipeline run is one of them.

    So nothing that other runs made is taken or replaced, while a step of this run that is tried again goes on from what
    the run itself has made.
    """
    run = os.environ.get("LFM_PIPELINE_RUN", "").partition("/")[0]
    return {**inputs, "made_again_by": run} if run and makes_again() else inputs


def makes_again() -> bool:
    """Whether this pipeline run takes nothing that another made."""
    return bool(os.environ.get(NO_CACHE))


def build_once(kind: str, inputs: dict[str, Any], build: Callable[[Path], None]) -> tuple[Path, bool]:
    """The artifact for these inputs, from the store if an intact one is there, else built.

    Args:
        kind: folder of the store, and the artifact's kind.
        inputs: everything the result depends on, JSON-like; its hash, as `own_inputs` has them, names the artifact.
        build: fills the empty folder it is given.

    Returns:
        The artifact's folder in the store, and whether it was there already.
    """
    own = own_inputs(inputs)
    folder, reused = _build_once(kind, own, build)
    if own != inputs and not reused:
        _beside(folder, folder.with_name(content_key(inputs)))
    return folder, reused


def _build_once(kind: str, inputs: dict[str, Any], build: Callable[[Path], None]) -> tuple[Path, bool]:
    key = content_key(inputs)
    folder, remote = home() / "store" / kind / key, shared(kind, key)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A second process that wants the same waits and then reuses it; a killed one leaves the lock open.
    with FileLock(folder.with_suffix(".lock")):
        for left_behind in folder.parent.glob(f".{folder.name}.*"):
            shutil.rmtree(left_behind)
        if folder.is_dir():
            try:
                verify(folder)
            except InputError as error:
                say(f"warning: {str(error).partition(';')[0]}; it is made or fetched again")
                shutil.rmtree(folder)
            else:
                touch(folder)
                return folder, True
        if remote:
            s3.check_bucket(remote)  # before hours of work for a store that is not there
            if pull(remote, folder):
                return folder, True
        with publishing(folder, kind, inputs) as aside:
            build(aside)
        if remote:
            try:
                push(folder, remote)
            except InputError as error:  # made is made: this machine goes on with its own
                say(f"warning: not in the shared store: {error}")
        return folder, False


def _beside(again: Path, usual: Path) -> None:
    """Keep a result that was made again next to the one of other runs.

    The same bytes lie on the disk once, and the usual result has them where it was missing or damaged. Other bytes
    replace nothing: runs that go on may have pointers to what is there.
    """
    content = read_manifest(again)["content"]
    with FileLock(usual.with_suffix(".lock")), FileLock(again.with_suffix(".lock")):
        try:
            found = verify(usual)["content"]
        except InputError:
            _replace(usual, again)
            return
        if found == content:
            _replace(again, usual)
        else:
            say(f"made again, other bytes than before: {content[:12]}, not {found[:12]}; both are kept")


def _replace(folder: Path, other: Path) -> None:
    """Give an artifact the files of another with the same content, by links where the file system allows them."""
    aside, old = (folder.with_name(f".{folder.name}.{name}") for name in ("new", "old"))
    copy_to(other, aside)
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def push(folder: Path, remote: str) -> None:
    """Copy an artifact to an address; readers see all of it or nothing.

    Raises:
        InputError: the server's refusal.
        OSError: the folder changed meanwhile.
    """
    manifest = (folder / MANIFEST).read_bytes()
    content = json.loads(manifest)["content"]
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            s3.upload(path, f"{remote}/{content}/{path.relative_to(folder)}")
    s3.write(f"{remote}/{MANIFEST}", manifest)


def is_whole_at(remote: str, folder: Path) -> bool:
    """Whether every file of an artifact is at an address; their names are compared, not their bytes.

    Raises:
        InputError: the server's refusal.
    """
    manifest = read_manifest(folder)
    prefix = f"{remote}/{manifest['content']}/"
    there = {item.uri.removeprefix(prefix) for item in s3.listing(prefix.rstrip("/"))}
    return {MANIFEST, *manifest["files"]} <= there


def pull(remote: str, folder: Path, content: str | None = None) -> bool:
    """Copy an artifact from an address, if an intact one is there.

    Args:
        remote: address of the artifact.
        folder: final place, where nothing is yet.
        content: the content to take; None: the one that was sent last.

    Raises:
        InputError: the server's refusal.
    """
    content = content or _content_at(remote)
    if content is None:
        return False
    aside = folder.with_name(f".{folder.name}.pull.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    prefix = f"{remote}/{content}/"
    for item in s3.listing(prefix.rstrip("/")):
        s3.download(item.uri, aside / item.uri.removeprefix(prefix))
    try:
        if verify(aside)["content"] != content:
            raise InputError(f"{prefix} holds another artifact")
    except InputError as error:
        what = str(error).partition(";")[0].replace(str(aside), prefix.rstrip("/"))
        say(f"warning: {what}; what the shared store has is not taken")
        shutil.rmtree(aside, ignore_errors=True)
        return False
    aside.rename(folder)
    return True


def _content_at(remote: str) -> str | None:
    """The content that was sent last to an address, if any was."""
    if not s3.exists(f"{remote}/{MANIFEST}"):
        return None
    try:
        return str(json.loads(s3.read(f"{remote}/{MANIFEST}"))["content"])
    except (ValueError, KeyError, TypeError):  # what a damaged object can come to
        return None


class Mirror:
    """Copies of a stage's checkpoints at LFM_STORE, made while training goes on; an upload never stops it.

    Args:
        remote: Address of the stage's folder.
        keep: Number of the newest checkpoints that stay there.
        files: Files outside of the checkpoints, sent after each of them.
    """

    def __init__(self, remote: str, keep: int, files: Sequence[Path] = ()) -> None:
        self.remote, self.keep, self.files = remote, keep, files
        self._newest: Path | None = None
        self._change = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def send(self, folder: Path) -> None:
        """Upload this checkpoint next; an older one that still waits is skipped."""
        with self._change:
            self._newest = folder
            self._change.notify()

    def close(self) -> None:
        """Wait for the last upload, within limits."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            say(f"warning: the last checkpoint did not reach {self.remote} in {PATIENCE:.0f} s")

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._newest or self._closed)
                folder, self._newest = self._newest, None
            if folder is None:
                return
            try:
                self._upload(folder)
            except FileNotFoundError:
                continue  # training deleted it for a newer one, which comes next
            except (InputError, OSError) as error:
                say(f"warning: {folder.name} is not in the shared store: {error}")

    def _upload(self, folder: Path) -> None:
        push(folder, f"{self.remote}/{folder.name}")
        for path in self.files:
            with suppress(FileNotFoundError):
                s3.upload(path, f"{self.remote}/{path.name}")
        for old in _steps(self.remote)[: -self.keep]:
            s3.delete(f"{self.remote}/{old}")


def _steps(remote: str) -> list[str]:
    """Names of the whole checkpoints at an address, oldest first."""
    items = (item.uri.removeprefix(f"{remote}/").split("/") for item in s3.listing(remote))
    return sorted({path[0] for path in items if path[0].startswith("step-") and path[1:] == [MANIFEST]})


def fetch_checkpoints(remote: str, folder: Path, files: Sequence[Path] = ()) -> None:
    """Download the newest checkpoint into an empty folder, with the files that were sent after it, if there is one.

    Raises:
        InputError: the server's refusal.
    """
    if any(folder.glob("step-*")):
        return
    for name in reversed(_steps(remote)):
        folder.mkdir(parents=True, exist_ok=True)
        if not pull(f"{remote}/{name}", folder / name):
            continue
        for path in files:
            if s3.exists(f"{remote}/{path.name}"):
                s3.download(f"{remote}/{path.name}", path)
        say(f"{name} comes from the shared store")
        return
