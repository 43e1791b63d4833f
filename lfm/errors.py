"""Errors that the user can correct."""

import difflib
import signal
from collections.abc import Iterable

ERROR_MARK = "error: "
"""Begins the line on stderr with which a process tells the user of an `InputError`."""


SIGTERM_EXIT = 143
"""Exit code of a process that SIGTERM ended."""


class InputError(ValueError):
    """Something the user gave is wrong; the message names the item, the rule and the fix."""

    exit_code = 2


class PassingError(InputError):
    """What does not answer may do so a moment later, without anybody's doing: another attempt tries again."""


def counted(number: int, one: str, several: str = "") -> str:
    """A number with its noun, and perhaps what follows, for a message: 1 image, 2,000 images.

    Args:
        number: how many there are.
        one: words after a 1, as in "class has".
        several: words after another number, as in "classes have"; empty: `one` and an s.
    """
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that does not exist: the nearest one if there is one, else all of them."""
    known = list(known)
    near = [k for k in known if k.rpartition(".")[2] == name] or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return InputError(f"unknown {kind} {name!r}; {hint}")


CRASHES = {
    "SIGSEGV": "a library's own code reached for memory that is not its own",
    "SIGABRT": "a library found its own state broken and gave up; its last words are in the log",
    "SIGBUS": "memory behind a file was not there: mostly /dev/shm or the disk is full, or a file became shorter while "
    "it was read. Make room (a container: more shared memory) and run again",
    "SIGILL": "a library was built for instructions that this CPU lacks: take another build, or another machine",
    "SIGFPE": "a library divided by zero, or met another error of arithmetic",
}
"""Signals by which a process ends itself: what that says, and where there is one, the fix."""
CRASH_FIX = (
    ". It will most likely happen again: try another tower, train.device or train.precision, or other versions of "
    "PyTorch and of the library that the log names last"
)


def ended_by(number: int) -> str:
    """Message for the user about a step that a signal ended, from outside or by a fault of its own."""
    name = signal.Signals(number).name
    if name in CRASHES:
        fix = CRASH_FIX if name in ("SIGSEGV", "SIGABRT", "SIGFPE") else ""
        return f"{ERROR_MARK}the step crashed with {name}: {CRASHES[name]}{fix}"
    memory = ", most likely for lack of memory: lower the batch or image size" if name == "SIGKILL" else ""
    return f"{ERROR_MARK}the step was ended from outside by {name}{memory}; run again to continue"
