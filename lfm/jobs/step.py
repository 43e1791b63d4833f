"""What all jobs share: how a step ends, and what it says."""

import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from lfm.errors import InputError
from lfm.progress import say
from lfm.storage.artifact import home, read_manifest

P = ParamSpec("P")
R = TypeVar("R")

ERROR_MARK = "error: "
SYSTEM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
"""What the machine refuses, and its owner can mend."""


def step(job: Callable[P, R]) -> Callable[P, R]:
    """End with one line and exit code 2 where the user can mend it; the traceback stays for our own mistakes."""

    @functools.wraps(job)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return job(*args, **kwargs)
        except Exception as error:
            told = system_error(error)
            if os.environ.get("LFM_DEBUG") or told is None:
                raise
            print(f"{ERROR_MARK}{told}", file=sys.stderr, flush=True)  # noqa: T201
            raise SystemExit(told.exit_code) from None

    return wrapped


def system_error(error: BaseException) -> InputError | None:
    """What the user can mend, in words that say how: an `InputError` as it is, a refusal of the machine; else None."""
    if isinstance(error, InputError):
        return error
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "database or disk is full" in str(error):  # SQLite's words, whoever passes them on
        return InputError(f"the disk under {home()} is full; make room or set LFM_HOME, then run again: it goes on")
    if isinstance(error, OSError) and error.errno in SYSTEM:
        return InputError(f"{error.filename or home()}: {error.strerror}; mend that, then run again: it goes on")
    return None


def content(folder: str | Path) -> str:
    """The content hash of an artifact."""
    return str(read_manifest(Path(folder))["content"])


def told(what: str, key_folder: Path, reused: bool) -> None:
    """Say whether a step's result was there already."""
    say(f"{what}: {'unchanged, reused' if reused else 'done'} ({key_folder.name[:12]})")
