"""Errors that the user can correct."""

import difflib
from collections.abc import Iterable

ERROR_MARK = "error: "
"""Begins the line on stderr with which a process tells the user of an `InputError`."""


SIGTERM_EXIT = 143
"""Exit code of a process that SIGTERM ended."""


class InputError(ValueError):
    """Something the user gave is wrong; the message names the item, the rule and the fix."""

    exit_code = 2


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that does not exist: the nearest one if there is one, else all of them."""
    known = list(known)
    near = [k for k in known if k.rpartition(".")[2] == name] or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return InputError(f"unknown {kind} {name!r}; {hint}")
