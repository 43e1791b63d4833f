"""What the commands share: options, checks, and how examples are shown."""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from lfm.errors import InputError
from lfm.storage.artifact import check_writable, home

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Change a field, as in --set stage1.epochs=3. Repeatable."),
]
PresetArgument = Annotated[str, typer.Argument(help="Name of a preset; `lfm presets` lists them.")]
HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="Folder for data, models and runs. Default: LFM_HOME, else .lfm here."),
]


def examples(command: Callable[..., None]) -> Callable[..., None]:
    """Keep the lines under Examples as they are: a backspace tells click so."""
    text, _, shown = inspect.cleandoc(command.__doc__ or "").partition("Examples:")
    lines = [line.strip() for line in shown.splitlines() if line.strip()]
    command.__doc__ = text + "\b\nExamples:\n" + "".join(f"  {line}\n" for line in lines) if lines else text
    return command


def use_home(folder: Path | None) -> None:
    """Take this folder, or LFM_HOME, and see that it can be written to."""
    set_home(folder)
    check_writable(home())


def set_home(folder: Path | None) -> None:
    """Take this folder, if there is one, as LFM_HOME; for commands that only read."""
    if folder:
        os.environ["LFM_HOME"] = str(folder.absolute())


def check_file(path: Path) -> None:
    """See that a file can be written.

    Raises:
        InputError: it is a folder, or its folder cannot be written to.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; name the file to write, as in {path / 'out'}")
    check_writable(path.absolute().parent)


def debugging() -> bool:
    """Whether tracebacks and all output of the steps are wanted."""
    return bool(os.environ.get("LFM_DEBUG"))
