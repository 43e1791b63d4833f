"""What a step says while it works: a bar on a terminal, plain lines in a log."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self, TypeAlias

from tqdm import tqdm

# Marks our lines among those of the libraries, so that `lfm run` can show these and file the rest.
MARK = "│ "
BAR_FORMAT = MARK + "{desc:<9}{percentage:3.0f}% ▕{bar:24}▏ {n_fmt}/{total_fmt} {unit}, {remaining} left{postfix}"
REDRAW_SECONDS = 0.5
"""A bar is redrawn, and a line follows another, no sooner than after so long."""
LINE_SECONDS = 30.0
LINES = 20
"""A line is due after `LINE_SECONDS`, or with each 1/`LINES` of the whole, whichever comes first."""

OTHER_BARS = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Variables by which libraries draw no bars of their own."""

_LOCK = threading.RLock()


def no_other_bars() -> None:
    """Let libraries draw no bars, unless the user's variables say so: a log would fill with their redraws."""
    for name, value in OTHER_BARS.items():
        os.environ.setdefault(name, value)


_HEARD: ContextVar[list[str] | None] = ContextVar("heard", default=None)


@contextmanager
def heard() -> Iterator[list[str]]:
    """What this thread says to the user meanwhile, without its bars; it is shown all the same."""
    lines: list[str] = []
    token = _HEARD.set(lines)
    try:
        yield lines
    finally:
        _HEARD.reset(token)


def say(text: str) -> None:
    """One line to the user, flushed, so that it appears in its place among the bars."""
    if (lines := _HEARD.get()) is not None:
        lines.append(text)
    _show(text)


def _show(text: str) -> None:
    for line in text.splitlines() or [""]:
        sys.stdout.write(f"{MARK}{line}\n")
    sys.stdout.flush()


def bar(total: int, label: str, unit: str, initial: int = 0, hidden: bool = False) -> "Progress":
    """Progress moved by `update`: a bar on a terminal, elsewhere plain lines; hidden in all processes but one.

    A step of `lfm run` writes to a pipe; LFM_BARS=1 says that its lines end on a terminal.
    """
    if not (os.environ.get("LFM_BARS") or sys.stdout.isatty()):
        return PlainLines(total, label, unit, initial, hidden)
    tqdm.set_lock(_LOCK)  # its own is for several processes, and a killed one leaves it behind
    return tqdm(
        total=total,
        initial=initial,
        disable=hidden,
        desc=label,
        unit=unit,
        file=sys.stdout,
        bar_format=BAR_FORMAT,
        mininterval=REDRAW_SECONDS,
        ncols=140,
        leave=True,
    )


class PlainLines:
    """Progress for a log: a line at the start, at the end, and now and then between; no carriage returns.

    A log collector shows a line once it has ended (that of a pod, say), so redraws would appear all at once at the end.
    """

    def __init__(self, total: int, label: str, unit: str, initial: int, hidden: bool) -> None:
        self.total, self.label, self.unit, self.initial, self.hidden = total, label, unit, initial, hidden
        self.n, self.note, self.shown = initial, "", ""
        self.began = time.monotonic()
        self._show()

    def update(self, n: int = 1) -> None:
        """Go on by so many units; the line at all of them is that of `close`."""
        self.n += n
        if self.total and self.n >= self.total:
            return
        waited = time.monotonic() - self.last
        part = self.total and self.n * LINES // self.total > self.at * LINES // self.total
        if waited >= LINE_SECONDS or (part and waited >= REDRAW_SECONDS):
            self._show()

    def set_postfix_str(self, s: str = "", refresh: bool = False) -> None:
        """Show this after the numbers, from the next line on."""
        self.note = s

    def close(self) -> None:
        """Show where it ended, unless the last line says so: another time alone is no news."""
        if self.n != self.at:
            self._show()

    def _show(self) -> None:
        self.last, self.at = time.monotonic(), self.n
        line = ", ".join(part for part in (self._so_far(), self._time(self.last - self.began), self.note) if part)
        if not self.hidden and line != self.shown:
            _show(line)
        self.shown = line

    def _so_far(self) -> str:
        of = f"{100 * self.n / self.total:3.0f}% {self.n:,}/{self.total:,}" if self.total else f"{self.n:,}"
        return f"{self.label:<9}{of} {self.unit}"

    def _time(self, seconds: float) -> str:
        done = self.n - self.initial
        if not done:
            return ""
        if self.n < self.total:
            return f"{tqdm.format_interval(seconds / done * (self.total - self.n))} left"
        return f"{tqdm.format_interval(seconds)} taken"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


Progress: TypeAlias = "tqdm[Any] | PlainLines"
