"""Packages from the Debian mirror that this machine is configured with, by its own apt; needs no root."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path


def download(packages: Sequence[str], folder: Path, seconds: float) -> list[Path]:
    """Fetch packages, which apt compares with its signed lists.

    Args:
        packages: their names.
        folder: gets the files.
        seconds: longest time for the packages, and for the lists where this machine has none.

    Returns:
        The .deb files, in the order of the names.

    Raises:
        OSError: no apt here, no such package, or no answer; in apt's words.
        subprocess.SubprocessError: it took too long.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise FileNotFoundError("no apt-get here")

    def call(*command: str) -> None:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds)  # noqa: S603
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise OSError(lines[-1])

    try:
        call("apt-get", "-qq", "download", *packages)
    except OSError:  # no package lists on this machine: fetch them to a folder of our own, which needs no root
        (folder / "lists" / "partial").mkdir(parents=True)
        lists = f"-oDir::State::Lists={folder / 'lists'}"
        call("apt-get", "-qq", lists, "update")
        call("apt-get", "-qq", lists, "download", *packages)
    return [next(folder.glob(f"{package}_*.deb")) for package in packages]
