"""`lfm report`: a run's page, several runs compared, the paper's tables."""

import os
from pathlib import Path
from typing import Annotated

import typer

from lfm.artifact import check_writable, home
from lfm.config import InputError

PAPER = "paper"


def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="MLflow run id, its first digits, a run's name, latest; or: paper."),
    ],
    compare: Annotated[bool, typer.Option("--compare", help="Hold the runs against the first one.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write. Default: reports/RUN in the home folder.")
    ] = None,
    home_: Annotated[
        Path | None, typer.Option("--home", help="Folder for data, models and runs. Default: LFM_HOME, else .lfm here.")
    ] = None,
) -> None:
    """Write a run's page again, compare runs, or fill the paper's tables, from MLflow and without a GPU.

    The folder gets report.html (one file that asks nothing of a network), figures as SVG and PNG, and the numbers
    behind them as CSV.

    Examples:
      lfm report latest

      lfm report 3f2a91c0 --out my-report

      lfm report --compare 3f2a91c0 77b01d5e

      lfm report paper
    """
    if home_:
        os.environ["LFM_HOME"] = str(home_.absolute())
    check_writable(home())
    if not compare and len(runs) > 1:
        raise InputError(f"{len(runs)} runs: give --compare to hold them against the first, or name one run")
    from lfm.jobs import reporting

    if compare:
        found, rows = reporting.compare_runs(runs)
        name = "compared"
        for run, group, value, low, high, kind in rows:
            typer.echo(f"{run:<40} {group:<7}{value:+6.1f}  ({low:+.1f} to {high:+.1f}, {kind})")
    elif runs == [PAPER]:
        found, name = reporting.report_paper(), PAPER
    else:
        found, past = reporting.report_run(runs[0])
        name = past.run_id[:12]
        typer.echo(f"{past.name}: run {past.run_id}")
    folder = out or home() / "reports" / name
    check_writable(folder)
    found.write(folder)
    typer.echo(f"Page: {folder / 'report.html'}")
