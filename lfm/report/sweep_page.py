"""A page of a sweep: the scores of its configurations as a figure and a table."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from lfm.evaluation.comparison import Row as Scores
from lfm.report.draw import GROUP_COLOUR, Piece, save_png, save_svg, style
from lfm.report.html import Row, cell, document, figure, number, part, table
from lfm.report.tables import COLUMNS

LOG_FROM = 30
"""Values that span more than so many times their smallest lie on a logarithmic axis."""


def sweep_figure(title: str, rows: Sequence[Scores], over: str) -> Piece:
    """Curves over the value of the sweep where every row has one, otherwise bars.

    Args:
        title: above the figure.
        rows: from `lfm.evaluation.comparison.rows_of`.
        over: name of the field whose values the sweep is over.
    """
    with style():
        drawing = Figure(figsize=(max(7.0, min(20.0, len(rows) * 1.1)), 4.5), layout="constrained")
        axes = drawing.subplots()
        columns = [column for column in COLUMNS if any(row[column] is not None for row in rows)]
        if all(row["value"] is not None for row in rows):
            rows = sorted(rows, key=lambda row: float(row["value"]))
            x = [row["value"] for row in rows]
            for column in columns:
                width = 2.5 if column == "all" else 1.2
                mean, deviation = _means_and_deviations(rows, column)
                axes.errorbar(x, mean, deviation, label=column, color=GROUP_COLOUR[column], marker="o",
                              linewidth=width, capsize=3)  # fmt: skip
            if x[0] > 0 and x[-1] / x[0] > LOG_FROM:
                axes.set_xscale("log")
            axes.set_xlabel(over)
        else:
            for k, column in enumerate(columns):
                place = [i + (k - (len(columns) - 1) / 2) * 0.2 for i in range(len(rows))]
                mean, deviation = _means_and_deviations(rows, column)
                axes.bar(place, mean, 0.2, yerr=deviation, label=column, color=GROUP_COLOUR[column], capsize=2)
            axes.set_xticks(range(len(rows)), [row["label"] for row in rows], rotation=30, ha="right")
        axes.set_ylabel("top-1 accuracy, %")
        axes.set_title(title)
        axes.legend(ncols=4, loc="best")
    caption = "Top-1 accuracy by shot group: means over the seeds, with their standard deviations."
    numbers = [[row["label"], row["value"], *(row[column] for column in COLUMNS)] for row in rows]
    return Piece("sweep", title, caption, drawing, ("label", "value", *COLUMNS), numbers)


def _means_and_deviations(rows: Sequence[Scores], column: str) -> tuple[list[float], list[float]]:
    """Means and deviations; not a number, which is not drawn, where there is no such class."""
    means = [float("nan") if row[column] is None else float(row[column]) for row in rows]
    return means, [row[f"{column}_std"] or 0.0 for row in rows]


def write_figure(piece: Piece, folder: Path) -> list[Path]:
    """Write figure.svg and figure.png into a folder; their paths."""
    paths = [folder / "figure.svg", folder / "figure.png"]
    paths[0].write_text(save_svg(piece))
    save_png(piece, paths[1])
    return paths


def sweep_page(title: str, rows: Sequence[Scores], piece: Piece) -> str:
    """Figure and table as one HTML page without external requests."""

    def shown(row: Scores, column: str) -> str:
        deviation = row[f"{column}_std"]
        return number(row[column]) + ("" if deviation is None else f" ± {deviation:.1f}")

    lines = [Row(row["label"], [*(cell(shown(row, c)) for c in COLUMNS), cell(str(row["seeds"]))]) for row in rows]
    scores = table("Means over the seeds ± standard deviation.", ("configuration", *COLUMNS, "seeds"), lines)
    return document("sweep.html", title, part("Scores", "Scores", figure(piece), scores), {})
