"""When a stage writes a checkpoint: on time, and when SIGTERM asks its processes to stop."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lfm.config.schema import TrainConfig
from lfm.errors import SIGTERM_EXIT, InputError
from lfm.training.processes import Processes

VOTE_EVERY = 20
"""Steps between votes of several processes: a vote waits for the slowest of them."""


class PreemptedError(InputError):
    """Training was asked to stop; it can be resumed from its last checkpoint."""

    exit_code = SIGTERM_EXIT


class CheckpointTimer:
    """Says after which steps a checkpoint is due. All processes get the same answer.

    Args:
        train: how often to write checkpoints.
        processes: the processes that train together.
    """

    def __init__(self, train: TrainConfig, processes: Processes) -> None:
        self.every_steps, self.seconds, self.processes = (
            train.checkpoint_steps,
            60 * train.checkpoint_minutes,
            processes,
        )
        self.written = time.monotonic()
        self.sigterm = False
        """Whether this process has received SIGTERM."""
        self.stopping = False
        """Whether training stops at the checkpoint that is due: some process has received SIGTERM."""

    def due(self, step: int) -> bool:
        """Whether to write a checkpoint after this many steps."""
        by_steps = bool(self.every_steps and step % self.every_steps == 0)
        if self.processes.count > 1 and not by_steps and step % VOTE_EVERY:
            return False
        late, self.stopping = time.monotonic() - self.written >= self.seconds, self.sigterm
        if self.processes.count > 1:  # clocks differ, and a signal reaches one process before another: they vote
            votes = torch.tensor([float(late), float(self.stopping)], device=self.processes.device)
            late, self.stopping = (bool(vote) for vote in self.processes.reduce(votes, "sum").tolist())
        return by_steps or self.stopping or late

    def restart(self) -> None:
        """Count the time from now: a checkpoint was written."""
        self.written = time.monotonic()

    @contextmanager
    def catching_sigterm(self) -> Iterator[None]:
        """While this is open, SIGTERM does not end the process but makes a checkpoint due.

        Python delivers signals to the main thread; in another thread nothing is caught.
        """

        def remember(number: int, frame: object) -> None:
            self.sigterm = True

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, remember)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
