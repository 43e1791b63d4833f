"""Output of a local run: our own lines and progress bars on the screen, everything in a log."""

import io
import re
import shutil
import threading
from typing import TextIO

from lfm.errors import ERROR_MARK
from lfm.progress import MARK

BAR = re.compile(r"\d+% ▕")


class StepOutput(io.TextIOBase):
    """Replaces standard output while KFP runs: everything goes to a log, our own lines also to the screen.

    Where the screen is a terminal, the steps draw progress bars (LFM_BARS); they arrive as one line for each redraw,
    and are redrawn in place. The steps of a sweep may write at the same time.
    """

    def __init__(self, screen: TextIO, log: TextIO, verbose: bool) -> None:
        self.screen, self.log, self.verbose = screen, log, verbose
        self.rest, self.error, self.bar = "", "", False
        self.lock = threading.RLock()

    def writable(self) -> bool:  # noqa: D102
        return True

    def write(self, text: str) -> int:  # noqa: D102
        with self.lock:
            *lines, self.rest = (self.rest + text).split("\n")
            for line in lines:
                self.log.write(line + "\n")
                self._line(line.strip())
        return len(text)

    def flush(self) -> None:  # noqa: D102
        self.log.flush()
        self.screen.flush()

    def _line(self, line: str) -> None:
        if line.startswith(ERROR_MARK):
            self.error = self.error or line.removeprefix(ERROR_MARK)  # later errors are consequences of the first
        elif MARK in line and BAR.search(line):
            text = "  " + line[line.index(MARK) :].removeprefix(MARK)
            self.screen.write("\r\x1b[K" + text[: shutil.get_terminal_size().columns - 1])
            self.screen.flush()
            self.bar = True
        elif line.startswith(MARK.strip()) or self.verbose:
            self.end_bar()
            self.screen.write("  " + line.removeprefix(MARK.strip()).removeprefix(" ") + "\n")
            self.screen.flush()

    def end_bar(self) -> None:
        """Start a new line after a progress bar."""
        if self.bar:
            self.screen.write("\n")
        self.bar = False
