"""What all jobs share: how a step ends, and what it says."""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from lfm.artifact import read_manifest
from lfm.config import InputError
from lfm.progress import say

P = ParamSpec("P")
R = TypeVar("R")

ERROR_MARK = "error: "


def step(job: Callable[P, R]) -> Callable[P, R]:
    """End with one line and exit code 2 where the user can mend it; the traceback stays for our own mistakes."""

    @functools.wraps(job)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return job(*args, **kwargs)
        except InputError as error:
            if os.environ.get("LFM_DEBUG"):
                raise
            print(f"{ERROR_MARK}{error}", file=sys.stderr, flush=True)  # noqa: T201
            raise SystemExit(2) from None

    return wrapped


def content(folder: str | Path) -> str:
    """The content hash of an artifact."""
    return str(read_manifest(Path(folder))["content"])


def told(what: str, key_folder: Path, reused: bool) -> None:
    """Say whether a step's result was there already."""
    say(f"{what}: {'unchanged, reused' if reused else 'done'} ({key_folder.name[:12]})")
