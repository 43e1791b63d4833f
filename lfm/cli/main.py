"""`lfm ...`: each command one job. Heavy imports wait until a command needs them."""

import os
import signal
from typing import Annotated

import typer

from lfm import __version__
from lfm.cli import clean, cluster, data, models, report, run, serve
from lfm.cli.options import debugging
from lfm.errors import SIGTERM_EXIT

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Text-guided mixup for long-tailed image data.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lfm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and all output of the steps.")] = False,
) -> None:
    if debug:
        os.environ["LFM_DEBUG"] = "1"


for commands in (run, data, report, cluster, models, serve, clean):
    commands.add_to(app)


def main() -> None:
    """The `lfm` command. Exit code 2: an error the user can correct; 1: another error; 130: Ctrl-C; 143: SIGTERM."""

    def terminate(number: int, frame: object) -> None:
        raise SystemExit(SIGTERM_EXIT)  # runs every `finally`, so the running step writes a checkpoint

    signal.signal(signal.SIGTERM, terminate)
    # Interpreters that commands start must not take a folder called lfm, as that of a clone, for the package.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    try:
        app()
    except SystemExit as end:  # typer turns Ctrl-C into this
        if end.code in (INTERRUPTED, SIGTERM_EXIT):
            typer.echo("\nstopped; the same command continues from here", err=True)
        raise
    except Exception as error:
        from lfm.jobs.step import as_user_error

        user_error = as_user_error(error)
        if debugging() or (user_error is None and not isinstance(error, RuntimeError)):
            raise
        typer.echo(f"error: {user_error or error}", err=True)
        raise SystemExit(user_error.exit_code if user_error else 1) from None
