"""What all jobs share: how a step ends after an error, and what it prints."""

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
"""Errors of the operating system that the user can correct."""


def step(job: Callable[P, R]) -> Callable[P, R]:
    """End with one line and exit code 2 for an error the user can correct; our own mistakes keep their traceback."""

    @functools.wraps(job)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return job(*args, **kwargs)
        except Exception as error:
            user_error = as_user_error(error)
            if os.environ.get("LFM_DEBUG") or user_error is None:
                raise
            print(f"{ERROR_MARK}{user_error}", file=sys.stderr, flush=True)  # noqa: T201
            raise SystemExit(user_error.exit_code) from None

    return wrapped


def as_user_error(error: BaseException) -> InputError | None:
    """An `InputError` as it is, an error of the operating system as an `InputError` with its remedy; else None."""
    if isinstance(error, InputError):
        return error
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "database or disk is full" in str(error):  # SQLite's message, also inside other errors
        return InputError(f"the disk under {home()} is full; make room or set LFM_HOME, then run again to continue")
    if isinstance(error, OSError) and error.errno in SYSTEM:
        return InputError(f"{error.filename or home()}: {error.strerror}; correct that, then run again to continue")
    return None


def content(folder: str | Path) -> str:
    """The content hash of an artifact."""
    return str(read_manifest(Path(folder))["content"])


def say_result(what: str, key_folder: Path, reused: bool) -> None:
    """Print whether the result of a step was made or reused."""
    say(f"{what}: {'unchanged, reused' if reused else 'done'} ({key_folder.name[:12]})")
