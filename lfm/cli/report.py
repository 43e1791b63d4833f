"""`lfm report`, `lfm compare`: a run's page, several runs compared, the paper's tables."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lfm.cli.options import HomeOption, examples, set_home
from lfm.errors import InputError
from lfm.storage.artifact import check_writable, home

if TYPE_CHECKING:
    from lfm.report.run_page import Report

PAPER = "paper"
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Folder to write. Default: in reports/ of the home folder.")
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (runs, report, compare):
        app.command()(examples(command))


def runs(
    preset: Annotated[str, typer.Argument(help="Show only the runs of this preset.")] = "",
    home_: HomeOption = None,
) -> None:
    """List the evaluated runs, the newest first: id, date (UTC), method, seed, scores and data.

    Differences are only those of the models between runs that name the same test images.

    Examples:
      lfm runs

      lfm runs fashion-mnist-lt
    """
    set_home(home_)
    from lfm.errors import unknown
    from lfm.report.tables import COLUMNS, percent
    from lfm.tracking import past_runs

    among = past_runs.evaluated()
    found = [run for run in among if preset in ("", run.params["preset"])]
    if not found and preset:
        raise unknown("preset with runs", preset, sorted({run.params["preset"] for run in among}) or ["none"])
    if not found:
        typer.echo(f"no evaluated runs in {home()}")
        return
    width = 2 + max(len(run.method) for run in found)
    head = "".join(f"{name:>8}" for name in COLUMNS)
    typer.echo(f"{'run':<14}{'date':<18}{'method':<{width}}{'seed':<6}{head}  data")
    for run in found:
        scores = "".join(f"{percent(value):>8}" for value in run.scores().values())
        unfinished = "" if run.finished else " (did not end well)"
        typer.echo(
            f"{run.run_id[:12]:<14}{run.date:<18}{run.method:<{width}}{run.seed:<6}{scores}  "
            f"{run.params['preset']}: {run.data}{unfinished}"
        )


def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="MLflow run id, its first digits, a run's name, latest; or: paper."),
    ],
    compare: Annotated[bool, typer.Option("--compare", help="Compare the runs with the first one.")] = False,
    out: OutOption = None,
    home_: HomeOption = None,
) -> None:
    """Write a run's page again, compare runs, or fill the paper's tables, from MLflow and without a GPU.

    The folder gets report.html (one file that needs no network), figures as SVG and PNG, and the numbers
    behind them as CSV.

    Examples:
      lfm report latest

      lfm report 3f2a91c0 --out my-report

      lfm report paper
    """
    set_home(home_)
    if compare:
        return _compare(runs, out)
    if len(runs) > 1:
        raise InputError(f"{len(runs)} runs: name one, or compare them with the first by lfm compare")
    from lfm.jobs import reports

    if runs == [PAPER]:
        return _write(reports.report_paper(), out, PAPER)
    found, past = reports.report_run(runs[0])
    typer.echo(f"{past.name}: run {past.run_id}")
    _write(found, out, past.run_id[:12])


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="MLflow run ids, their first digits, or runs' names.")
    ],
    out: OutOption = None,
    home_: HomeOption = None,
) -> None:
    """Compare runs with the first one, image by image: differences with 95 % intervals.

    Runs that were scored on other test images than the first get a table of their own, and are not compared in pairs.
    The folder gets report.html, figures as SVG and PNG, and the numbers behind them as CSV.

    Examples:
      lfm compare 3f2a91c0 77b01d5e

      lfm compare "ce, seed 0" "lfm + ce, seed 0" --out compared
    """
    set_home(home_)
    _compare(runs, out)


def _compare(runs: list[str], out: Path | None) -> None:
    from lfm.jobs import reports
    from lfm.report.compare_page import OTHER_IMAGES
    from lfm.report.tables import percent

    found, differences = reports.compare_runs(runs)
    columns, scores = found.tables["compared"]
    width = 2 + max(len(str(row[0])) for row in scores)
    typer.echo("Top-1 accuracy, %".ljust(width) + "".join(f"{name:>9}" for name in columns[1:]))
    for name, *values in scores:
        typer.echo(f"{name:<{width}}" + "".join(f"{percent(value):>9}" for value in values))
    typer.echo(f"\nDifference to {scores[0][0]} in points, with 95 % intervals")
    for run, group, value, low, high, kind in differences:
        clear = "" if low <= 0 <= high or kind == OTHER_IMAGES else " *"
        typer.echo(f"{run:<{width}}{group:<7}{value:+6.1f}  ({low:+.1f} to {high:+.1f}, {kind}){clear}")
    others = list(dict.fromkeys(run for run, *_, kind in differences if kind == OTHER_IMAGES))
    if others:
        typer.echo(
            f"\nwarning: {' and '.join(others)}: scored on other test images than {scores[0][0]}. Such a difference "
            f"may be one of the images, not of the models"
        )
    _write(found, out, "compared")


def _write(found: "Report", out: Path | None, name: str) -> None:
    folder = out or home() / "reports" / name
    check_writable(folder)
    found.write(folder)
    typer.echo(f"Page: {folder / 'report.html'}")
