"""A sign of life from the step that started training on other machines: they end when it stops.

A pod that is lost with its node removes nothing. The job's deadline alone would let it train for days for nobody, on
all its GPUs; a new try of the step or the end of the run removes it, but neither may come. So the step counts in a file
of the stage's work folder, which all see, and the first process looks whether the count goes on.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lfm.errors import ERROR_MARK

BEAT_SECONDS = 30.0
LIMIT_SECONDS = 600.0
"""Silence after which the step counts as gone: a volume on a network may be away for minutes."""


@contextmanager
def beating(path: Path) -> Iterator[None]:
    """Count in a file while this is open."""
    done = threading.Event()

    def beat() -> None:
        count = 0
        while True:
            with suppress(OSError):  # the volume may be away for a while
                path.write_text(str(count))
            count += 1
            if done.wait(BEAT_SECONDS):
                return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def end_with(path: Path, limit: float) -> None:
    """From now on, end this process by SIGTERM, with one line, once the file has not changed for too long.

    Its own clock measures that: those of two machines differ. In training SIGTERM asks for a checkpoint first.

    Args:
        path: the file of `beating`.
        limit: seconds.
    """

    def watch() -> None:
        seen, changed = "", time.monotonic()
        while time.monotonic() - changed < limit:
            with suppress(OSError):
                if (now := path.read_text()) != seen:
                    seen, changed = now, time.monotonic()
            time.sleep(limit / 20)
        print(  # noqa: T201
            f"{ERROR_MARK}the step that started this training has given no sign of life for {limit:.0f} s: it ends",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="heartbeat", daemon=True).start()
