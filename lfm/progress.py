"""What a step says while it works: a bar on a terminal, plain lines in a log."""

import sys
import threading
from typing import Any

from tqdm import tqdm

# Marks our lines among those of the libraries, so that `lfm run` can show these and file the rest.
MARK = "│ "
BAR_FORMAT = MARK + "{desc:<9}{percentage:3.0f}% ▕{bar:24}▏ {n_fmt}/{total_fmt} {unit}, {remaining} left{postfix}"


_LOCK = threading.RLock()


def say(text: str) -> None:
    """One line to the user, flushed, so that it appears in its place among the bars."""
    for line in text.splitlines() or [""]:
        sys.stdout.write(f"{MARK}{line}\n")
    sys.stdout.flush()


def bar(total: int, label: str, unit: str, initial: int = 0, hidden: bool = False) -> "tqdm[Any]":
    """A progress bar moved by `update`, rewritten at most twice a second; hidden in all processes but one."""
    tqdm.set_lock(_LOCK)  # its own is for several processes, and a killed one leaves it behind
    return tqdm(
        total=total,
        initial=initial,
        disable=hidden,
        desc=label,
        unit=unit,
        file=sys.stdout,
        bar_format=BAR_FORMAT,
        mininterval=0.5,
        ncols=140,
        leave=True,
    )
