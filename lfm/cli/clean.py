"""`lfm clean`: remove old versions, runs and store entries."""

import os
from typing import Annotated

import typer

from lfm.cli.options import HomeOption, examples, set_home, use_home
from lfm.errors import counted
from lfm.storage.artifact import home


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(examples(clean))


def clean(
    days: Annotated[float, typer.Option("--days", help="Only what was not used for so many days.", min=1)] = 30.0,
    keep: Annotated[int, typer.Option("--keep", help="Newest versions of each model that stay.", min=1)] = 3,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this it is only shown.")] = False,
    home_: HomeOption = None,
) -> None:
    """Show, or with --yes remove, old versions of models, runs and entries of the store, with their files.

    A champion, a challenger or any version with an alias stays, and so do those that a rollback leads to, the newest
    of each model, and the runs and store entries that they need. Runs and versions of an MLflow server, reports,
    sweeps, downloads and what machines share at LFM_STORE are not touched.

    Examples:
      lfm clean

      lfm clean --days 90 --keep 5 --yes
    """
    use_home(home_) if yes else set_home(home_)
    from lfm.jobs import cleaning

    found = cleaning.look(days, keep)
    if store := os.environ.get("LFM_STORE"):
        typer.echo(
            f"LFM_STORE={store} is left alone, since other machines use it; a rule of the bucket that ends objects "
            f"after some weeks removes what is old there: what is asked for again is made again"
        )
    lines = found.lines
    if not lines:
        typer.echo(f"nothing in {home()} is older than {days:g} days and not needed")
        return
    for what, date, size in lines:
        typer.echo(f"{date}  {_readable(size):>9}  {what}")
    total = _readable(found.bytes)
    if not yes:
        typer.echo(f"\n{counted(len(lines), 'thing')}, {total}; nothing was removed: --yes removes them")
        return
    stayed = cleaning.clean(found)
    for one in stayed:
        typer.echo(f"{one.what} is in use and stayed")
    typer.echo(f"\n{counted(len(lines) - len(stayed), 'thing')} removed, about {total}")


def _readable(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
