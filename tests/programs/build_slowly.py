"""Builds an artifact: MARKS SECONDS. Adds a line to the file MARKS as it begins, waits in the middle of it."""

import sys
import time
from pathlib import Path

from lfm.storage.store import build_once


def build(folder: Path) -> None:
    """Half, a pause, the rest."""
    (folder / "a.bin").write_bytes(b"half")
    with Path(sys.argv[1]).open("a") as file:
        file.write("built\n")
    time.sleep(float(sys.argv[2]))
    (folder / "b.bin").write_bytes(b"whole")


if __name__ == "__main__":
    made, reused = build_once("text", {"seed": 0}, build)
    print(made, reused, sorted(path.name for path in made.iterdir()))
