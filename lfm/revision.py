"""Which code this is: the commit, and the container image that carries it."""

import os
import re
import subprocess
from pathlib import Path

from lfm import __version__


def commit() -> str:
    """Git commit of the running code: LFM_COMMIT (set in the image), else git's word, else the version."""
    if os.environ.get("LFM_COMMIT"):
        return os.environ["LFM_COMMIT"]
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],  # noqa: S607
            cwd=here, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return f"lfm {__version__}"
    return done.stdout.strip()


def image() -> str:
    """The image that compiled pipelines name: LFM_IMAGE, else `lfm:COMMIT`, as `make image` tags it.

    KFP's cache does not see what is inside an image, so each commit has a tag of its own.
    """
    tag = re.sub(r"[^\w.-]+", "-", commit())  # a tag takes no spaces
    return os.environ.get("LFM_IMAGE") or f"lfm:{tag}"
