"""What all jobs share: how a step ends, and what it says."""

import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from lfm.artifact import home, read_manifest
from lfm.config import InputError
from lfm.progress import say

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
        except (InputError, OSError) as error:
            if os.environ.get("LFM_DEBUG") or (isinstance(error, OSError) and error.errno not in SYSTEM):
                raise
            print(f"{ERROR_MARK}{system_error(error)}", file=sys.stderr, flush=True)  # noqa: T201
            raise SystemExit(getattr(error, "exit_code", InputError.exit_code)) from None

    return wrapped


def system_error(error: Exception) -> Exception:
    """A refusal of the machine in words that say what to do; other errors as they are."""
    if not isinstance(error, OSError):
        return error
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError(f"the disk under {home()} is full; make room or set LFM_HOME, then run again: it goes on")
    return InputError(f"{error.filename or home()}: {error.strerror}; mend that, then run again: it goes on")


def content(folder: str | Path) -> str:
    """The content hash of an artifact."""
    return str(read_manifest(Path(folder))["content"])


def told(what: str, key_folder: Path, reused: bool) -> None:
    """Say whether a step's result was there already."""
    say(f"{what}: {'unchanged, reused' if reused else 'done'} ({key_folder.name[:12]})")
