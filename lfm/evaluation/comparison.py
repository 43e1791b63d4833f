"""The scores of several configurations side by side: rows, CSV, a figure, a page."""

import csv
import html
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("many", "medium", "few", "all")
Row = dict[str, Any]


def rows_of(variants: Sequence[Mapping[str, Any]], scores: Sequence[Mapping[str, Any]]) -> list[Row]:
    """A row for each configuration, its seeds together.

    Args:
        variants: `label`, and `value` where the sweep is over numbers (`lfm.config.sweeps.variants_of`).
        scores: of each variant: percent or None for each of `COLUMNS`.

    Returns:
        In the order of first appearance: `label`, `value`, `seeds`, and for each column the mean, and under COLUMN_std
        the standard deviation of the seeds (None for a single one).
    """
    groups: dict[str, list[int]] = {}
    for i, variant in enumerate(variants):
        groups.setdefault(str(variant["label"]), []).append(i)
    rows = []
    for label, members in groups.items():
        row: Row = {"label": label, "value": variants[members[0]].get("value"), "seeds": len(members)}
        for column in COLUMNS:
            found = [float(scores[i][column]) for i in members if scores[i].get(column) is not None]
            row[column] = statistics.mean(found) if found else None
            row[f"{column}_std"] = statistics.stdev(found) if len(found) > 1 else None
        rows.append(row)
    return rows


def to_csv(rows: Sequence[Row]) -> str:
    """The rows with a header, two decimals; an empty cell where there is no such class."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ["label", "value", "seeds", *(name for column in COLUMNS for name in (column, f"{column}_std"))]
    writer.writerow(names)
    for row in rows:
        cells = (row[name] for name in names)
        writer.writerow(["" if c is None else round(c, 4) if isinstance(c, float) else c for c in cells])
    return out.getvalue()


def draw(paths: Sequence[Path], title: str, rows: Sequence[Row], over: str) -> None:
    """Draw the rows: curves over the value where all have one, else bars.

    Args:
        paths: files to write; the ending says how.
        title: above it.
        rows: of `rows_of`.
        over: what the value is of.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(7.0, min(20.0, len(rows) * 1.1)), 4.5), layout="constrained")
    axes = figure.subplots()
    columns = [column for column in COLUMNS if any(row[column] is not None for row in rows)]
    if all(row["value"] is not None for row in rows):
        rows = sorted(rows, key=lambda row: float(row["value"]))
        x = [row["value"] for row in rows]
        for column in columns:
            width = 2.5 if column == "all" else 1.2
            axes.errorbar(x, *_column(rows, column), label=column, marker="o", linewidth=width, capsize=3)
        if x[0] > 0 and x[-1] / x[0] > 30:
            axes.set_xscale("log")
        axes.set_xlabel(over)
    else:
        for k, column in enumerate(columns):
            place = [i + (k - (len(columns) - 1) / 2) * 0.2 for i in range(len(rows))]
            mean, std = _column(rows, column)
            axes.bar(place, mean, 0.2, yerr=std, label=column, capsize=2)
        axes.set_xticks(range(len(rows)), [row["label"] for row in rows], rotation=30, ha="right")
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_title(title)
    axes.legend(ncols=4, loc="best")
    for path in paths:
        figure.savefig(path)


def _column(rows: Sequence[Row], column: str) -> tuple[list[float], list[float]]:
    """Means and deviations; not a number, which is not drawn, where there is no such class."""
    means = [float("nan") if row[column] is None else float(row[column]) for row in rows]
    return means, [row[f"{column}_std"] or 0.0 for row in rows]


def page(title: str, rows: Sequence[Row], svg: str) -> str:
    """Table and figure as one HTML page without external requests."""

    def cell(row: Row, column: str) -> str:
        if row[column] is None:
            return "<td>-</td>"
        spread = row[f"{column}_std"]
        return f"<td>{row[column]:.1f}{'' if spread is None else f' ± {spread:.1f}'}</td>"

    head = "".join(f"<th>{column}</th>" for column in COLUMNS)
    body = "".join(
        f"<tr><td>{html.escape(row['label'])}</td>{''.join(cell(row, column) for column in COLUMNS)}"
        f"<td>{row['seeds']}</td></tr>"
        for row in rows
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><style>'
        "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}"
        "th,td{padding:.3rem .5rem;text-align:right;border-bottom:1px solid #8886}"
        "th:first-child,td:first-child{text-align:left}svg{max-width:100%;height:auto;background:#fff}"
        f"</style></head><body><h1>{html.escape(title)}</h1><p>Top-1 accuracy on the test images, in percent.</p>"
        f"<table><thead><tr><th></th>{head}<th>seeds</th></tr></thead><tbody>{body}</tbody></table>"
        f"{svg[svg.index('<svg') :]}</body></html>"
    )
