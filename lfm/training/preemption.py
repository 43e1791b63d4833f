"""When a stage writes a checkpoint: on time, and when SIGTERM or Ctrl-C asks its processes to stop."""

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
        self.asked = False
        """Whether this process has received SIGTERM or SIGINT."""
        self.stopping = False
        """Whether training stops at the checkpoint that is due: some process was asked to."""

    def due(self, step: int, writing: bool) -> bool:
        """Whether to write a checkpoint after this many steps.

        Args:
            step: number of steps done.
            writing: whether the first process is still writing the one before; then time alone asks for none.
        """
        by_steps = bool(self.every_steps and step % self.every_steps == 0)
        if self.processes.count > 1 and not by_steps and step % VOTE_EVERY:
            return False
        late = self.processes.first and not writing and time.monotonic() - self.written >= self.seconds
        self.stopping = self.asked
        if self.processes.count > 1:  # one has the clock, and a signal reaches one process before another: they vote
            votes = torch.tensor([float(late), float(self.stopping)], device=self.processes.device)
            late, self.stopping = (bool(vote) for vote in self.processes.reduce(votes, "sum").tolist())
        return by_steps or self.stopping or late

    def restart(self) -> None:
        """Count the time from now: a checkpoint was begun."""
        self.written = time.monotonic()

    @contextmanager
    def catching_signals(self) -> Iterator[None]:
        """While this is open, SIGTERM and SIGINT do not end the process but make a checkpoint due.

        A second Ctrl-C does as it did before. SIGINT stays ignored where it was: a step of `lfm run` is ended by its
        parent. Python delivers signals to the main thread; in another thread nothing is caught.
        """

        def remember(number: int, frame: object) -> None:
            self.asked = True
            if number == signal.SIGINT:
                signal.signal(number, before[signal.Signals(number)])

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.getsignal(number) for number in numbers}
        for number in numbers:
            if number == signal.SIGTERM or before[number] is not signal.SIG_IGN:
                signal.signal(number, remember)
        try:
            yield
        finally:
            for number in numbers:
                signal.signal(number, before[number])
