"""Checkpoints are written while training goes on: a step waits for a copy of the state in memory, not for the disk."""

import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

from lfm.training.checkpoints import Checkpoints, Snapshot
from lfm.training.preemption import PreemptedError

LAST_SECONDS = 0.5
"""Longest wait for checkpoints once training was asked to stop: a step of Kubeflow Pipelines is killed a second after
SIGTERM, and its end is still to be told to MLflow."""
ASSUMED_RATE = 100e6
"""Bytes a second that are written before any checkpoint was: slow, for a volume on a network."""


class CheckpointWriter:
    """Writes one checkpoint at a time in a thread; the end of its context waits for it, but not where all is to stop.

    Args:
        checkpoints: where they are written.
        newest: step of the newest complete one; 0: none.
    """

    def __init__(self, checkpoints: Checkpoints, newest: int) -> None:
        self.checkpoints, self.newest = checkpoints, newest
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._took: float | None = None

    def busy(self) -> bool:
        """Whether a checkpoint is being written.

        Raises:
            OSError: the last one could not be written, as on a full disk. So do the other methods.
        """
        return not self._wait(0)

    def write(self, snapshot: Snapshot) -> None:
        """Copy the state and begin to write it; first wait for the one before."""
        self._wait()
        self._thread = threading.Thread(target=self._work, args=(snapshot.copy(),), name="checkpoint", daemon=True)
        self._thread.start()

    def write_last(self, snapshot: Snapshot) -> None:
        """Write the state before the process ends, if that is a matter of `LAST_SECONDS`; else it is lost.

        One that is being written comes first: it is nearer to its end.
        """
        if self._wait(LAST_SECONDS):
            expected = snapshot.size() / ASSUMED_RATE if self._took is None else self._took
            if expected <= LAST_SECONDS:
                self._save(snapshot)

    def _wait(self, seconds: float | None = None) -> bool:
        """Wait for the checkpoint that is being written; whether it is complete."""
        if self._thread:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return False
            self._thread = None
        if self._error:
            raise self._error
        return True

    def _work(self, snapshot: Snapshot) -> None:
        try:
            self._save(snapshot)
        except BaseException as error:  # for the training thread, which meets it after its step
            self._error = error

    def _save(self, snapshot: Snapshot) -> None:
        began = time.monotonic()
        self.checkpoints.save(snapshot)
        self._took, self.newest = time.monotonic() - began, snapshot.position.step

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self._wait()
        elif isinstance(error, Exception) and not isinstance(error, PreemptedError):
            with suppress(Exception):  # what ended the training is what to tell
                self._wait()
