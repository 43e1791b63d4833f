"""The scores of several configurations: a row for each, over its seeds, and the rows as CSV."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from lfm.config.schema import GROUPS

COLUMNS = (*GROUPS, "all")
Row = dict[str, Any]
SAME = 1e-9
"""Percent by which means of the same scores may differ from rounding."""


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


def same_images(variants: Sequence[Mapping[str, Any]], test_images: Sequence[str]) -> bool:
    """Whether all configurations were scored on the same test images; each seed may have its own.

    Args:
        variants: as for `rows_of`.
        test_images: names those of each variant.
    """
    found: dict[str, list[str]] = {}
    for variant, images in zip(variants, test_images, strict=True):
        found.setdefault(str(variant["label"]), []).append(images)
    return len({tuple(sorted(images)) for images in found.values()}) == 1


def best_of(rows: Sequence[Row], same: bool) -> str:
    """Which row is best on all images, in words; a tie is called one.

    Args:
        rows: of `rows_of`.
        same: All were scored on the same test images; otherwise there is no best.
    """
    if not same:
        return "the configurations were scored on different test images, so none is called the best"
    highest = max(float(row["all"]) for row in rows)
    best = [str(row["label"]) for row in rows if abs(row["all"] - highest) < SAME]
    if len(best) == 1:
        return f"best of all: {best[0]}, {highest:.1f}"
    return f"none is the best of all: {' and '.join(best)} tie at {highest:.1f}"


def to_csv(rows: Sequence[Row]) -> str:
    """The rows with a header, two decimals; an empty cell where there is no such class."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ["label", "value", "seeds", *(name for column in COLUMNS for name in (column, f"{column}_std"))]
    writer.writerow(names)
    for row in rows:
        cells = (row[name] for name in names)
        writer.writerow(["" if c is None else round(c, 4) if isinstance(c, float) else plain_cell(c) for c in cells])
    return out.getvalue()


RUNS = ("=", "+", "-", "@", "\t", "＝", "＋", "－", "＠")
"""A cell that begins so is a formula to some spreadsheet, which would run it."""


def plain_cell(value: Any) -> Any:
    """A text that a spreadsheet would run, behind an apostrophe, as OWASP advises; everything else as it is."""
    if isinstance(value, str):
        value = value.replace("\r", " ").replace("\n", " ")  # which some readers take for the end of a row
    if not isinstance(value, str) or not value.lstrip(" ").startswith(RUNS):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value  # a negative number
