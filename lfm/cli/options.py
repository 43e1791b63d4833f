"""What the commands share: options, the configuration they name, checks, and how examples are shown."""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lfm.errors import InputError
from lfm.storage.artifact import check_writable, home

if TYPE_CHECKING:
    from lfm.config.schema import RunConfig

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Change a field, as in --set stage1.epochs=3. Repeatable."),
]
PresetArgument = Annotated[str, typer.Argument(help="Name of a preset; `lfm presets` lists them.")]
HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="Folder for data, models and runs. Default: LFM_HOME, else .lfm here."),
]
NoCacheOption = Annotated[
    bool,
    typer.Option(
        "--no-cache", help="Make every result again, from data to scores. What earlier runs made is kept, and not used."
    ),
]


def examples(command: Callable[..., None]) -> Callable[..., None]:
    """Keep the lines under Examples as they are: a backspace tells click so."""
    text, _, shown = inspect.cleandoc(command.__doc__ or "").partition("Examples:")
    lines = [line.strip() for line in shown.splitlines() if line.strip()]
    command.__doc__ = text + "\b\nExamples:\n" + "".join(f"  {line}\n" for line in lines) if lines else text
    return command


def read_config(preset: str, set_: list[str] | None, **changes: Any) -> "RunConfig":
    """The configuration of a preset with the values of --set.

    Args:
        preset: Name of the preset.
        set_: Items NAME=VALUE.
        changes: Further fields, which win; their names have __ for the dot.
    """
    # Half of the time that `lfm --help` would take.
    from lfm.config.overrides import OF_SUBSETS, parse_overrides
    from lfm.config.presets import load

    given = parse_overrides(set_ or [])
    config = load(preset, given | {name.replace("__", "."): v for name, v in changes.items()})
    idle = [f"data.{name}" for name in OF_SUBSETS if f"data.{name}" in given]
    if idle and config.data.profile == "as-is":  # of a value that is the default, the configuration cannot tell
        raise InputError(f"{idle[0]} has no effect with data.profile=as-is; leave it out, or set another data.profile")
    return config


def use_home(folder: Path | None) -> None:
    """Set LFM_HOME to this folder, if there is one, and check that LFM_HOME can be written to."""
    set_home(folder)
    check_writable(home())


def set_home(folder: Path | None) -> None:
    """Set LFM_HOME to this folder, if there is one; for commands that only read."""
    if folder:
        os.environ["LFM_HOME"] = str(folder.absolute())


def check_file(path: Path) -> None:
    """Check that a file can be written.

    Raises:
        InputError: The path is a folder, or its folder cannot be written to.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; name the file to write, as in {path / 'out'}")
    check_writable(path.absolute().parent)


def debugging() -> bool:
    """Whether --debug asks for tracebacks and all output of the steps."""
    return bool(os.environ.get("LFM_DEBUG"))
