"""What all jobs share: how a step ends after an error, and what it prints."""

import errno
import faulthandler
import functools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from lfm.errors import ERROR_MARK, SIGTERM_EXIT, InputError, PassingError
from lfm.progress import no_other_bars, say
from lfm.storage.artifact import home, read_manifest, whose_volume

P = ParamSpec("P")
R = TypeVar("R")

SYSTEM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
"""Errors of the operating system that the user can correct."""
FULL = ("database or disk is full", "No space left on device", "Disk quota exceeded")
"""What SQLite, and libraries that put the operating system's words into errors of their own, say of a full disk."""
UNUSABLE = (
    "file is not a database", "database disk image is malformed", "malformed database schema", "database is locked"
)  # fmt: skip
"""What SQLite says of a damaged file, and of one that another process holds, also inside other errors."""


def step(job: Callable[P, R]) -> Callable[P, R]:
    """End with one line and exit code 2 where the user can correct it; the traceback stays for our own mistakes.

    SIGTERM unwinds the job, so that its run in MLflow is closed as KILLED: a pod has about a second for that. An error
    of the user's is not met again by the retries of the same pod: they end at once with the same words.
    """

    @functools.wraps(job)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        no_other_bars()
        show_crashes()
        mistake = Mistake.of(job.__name__)
        os.umask(0o022)  # Argo's emissary sets 0: what a step writes could be written by all
        try:
            mistake.repeat()
            with unwound_by_sigterm():
                return job(*args, **kwargs)
        except Exception as error:
            correctable = as_user_error(error)
            if os.environ.get("LFM_DEBUG") or correctable is None:
                raise
            mistake.keep(correctable)
            print(f"{ERROR_MARK}{correctable}", file=sys.stderr, flush=True)  # noqa: T201
            raise SystemExit(correctable.exit_code) from None

    return wrapped


def show_crashes() -> None:
    """Let a crash in a library's own code leave the lines of Python that led to it in the log."""
    if not faulthandler.is_enabled():
        faulthandler.enable(2)


@contextmanager
def unwound_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the process by way of every `finally`; a second one does not disturb that."""

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(SIGTERM_EXIT)

    if threading.current_thread() is not threading.main_thread():  # only there can signals be caught
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class Mistake:
    """An error of the user's, kept in LFM_HOME for the retries of the pod that met it.

    KFP's launcher makes exit code 1 of every other, so a controller that retries failures retries these too. A run
    that a person retries counts its attempts from 0 again, and tries again.

    Args:
        path: File that keeps it.
        attempt: Number of this attempt, from KFP_RETRY_INDEX; None outside a backend.
    """

    path: Path
    attempt: int | None

    @classmethod
    def of(cls, job: str) -> "Mistake":
        """The one that this job may meet in this pipeline run."""
        index = os.environ.get("KFP_RETRY_INDEX", "")
        name = f"{os.environ.get('LFM_PIPELINE_RUN', '')}-{job}".replace("/", "-")
        return cls(home() / "mistakes" / f"{name}.json", int(index) if index.isdigit() else None)

    def keep(self, error: InputError) -> None:
        """Keep an error for the next attempt; not one that asks for it, as SIGTERM does, or that may pass."""
        if self.attempt is None or error.exit_code != InputError.exit_code or isinstance(error, PassingError):
            return
        with suppress(OSError):  # the volume may be what is wrong
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps({"attempt": self.attempt, "error": str(error)}))

    def repeat(self) -> None:
        """Raise the error of the attempt before.

        Raises:
            InputError: The attempt before met it.
        """
        if not self.attempt:
            return
        try:
            kept = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return
        if kept["attempt"] == self.attempt - 1:
            raise InputError(kept["error"])


def as_user_error(error: BaseException) -> InputError | None:
    """An `InputError` as it is, an error of the operating system as an `InputError` with its remedy; else None."""
    if isinstance(error, InputError):
        return error
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or any(words in str(error) for words in FULL):
        return InputError(f"the disk under {home()} is full; make room or set LFM_HOME, then run again to continue")
    if words := next((words for words in UNUSABLE if words in str(error)), ""):
        from lfm.tracking.database import unusable

        return unusable(home() / "mlflow.db", words)
    if isinstance(error, OSError) and error.errno in SYSTEM:
        path = error.filename or home()
        whose = whose_volume(Path(os.fsdecode(path))) if error.errno == errno.EACCES else ""
        return InputError(f"{path}: {error.strerror}; correct that, then run again to continue{whose}")
    return None


def content(folder: str | Path) -> str:
    """The content hash of an artifact."""
    return str(read_manifest(Path(folder))["content"])


def say_result(what: str, key_folder: Path, reused: bool) -> None:
    """Print whether the result of a step was made or reused."""
    say(f"{what}: {'unchanged, reused' if reused else 'done'} ({key_folder.name[:12]})")
