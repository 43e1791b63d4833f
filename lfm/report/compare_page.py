"""A page of several runs on the same test images: paired differences to the first."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lfm.config.schema import GROUPS
from lfm.report.draw import GROUP_COLOUR, MUTED, Piece, Table, legend_above, panels, style
from lfm.report.figures_scores import flow
from lfm.report.html import Cell, Row, card, cell, document, figure, grid, number, part, table, with_note
from lfm.report.run_page import Report, score_cells
from lfm.report.run_values import Other, Run
from lfm.report.stats import Difference, accuracy_intervals, hits, paired_differences, unpaired_differences
from lfm.report.tables import COLUMNS

SHOWN_CLASSES = 10
Compared = Run | Other
"""With its answers, or with its scores alone."""


def name_of(run: Compared) -> str:
    """Method, seed and the beginning of the run's id."""
    seed = run.seed if isinstance(run, Other) else run.provenance["seed"]
    return f"{run.name if isinstance(run, Other) else run.method}, seed {seed} ({run.run_id[:8]})"


def differences(ours: Compared, base: Compared, total_G: Sequence[int]) -> dict[str, Difference | None]:
    """Accuracy less the base's: paired where both runs' answers to the same images are there.

    Args:
        ours: a run.
        base: the run it is held against.
        total_G: test images of each group.
    """
    if isinstance(ours, Run) and isinstance(base, Run) and same_images(ours, base):
        right_N, base_N = ours.predicted_N == ours.label_N, base.predicted_N == base.label_N
        return paired_differences(right_N, base_N, base.group_C[base.label_N])
    return unpaired_differences(_scores(ours), _scores(base), total_G)


def same_images(ours: Run, base: Run) -> bool:
    """Whether two runs answered the same test images, as far as their labels tell, in the same shot groups."""
    return np.array_equal(ours.label_N, base.label_N) and np.array_equal(ours.group_C, base.group_C)


def _scores(run: Compared) -> Mapping[str, Any]:
    return run.scores


def compare_page(runs: Sequence[Compared], total_G: Sequence[int], about: Mapping[str, Any]) -> Report:
    """The page.

    Args:
        runs: the first is what the others are held against.
        total_G: test images of each group.
        about: data, split and shot rule of all.
    """
    base, *rest = runs
    found = {name_of(run): differences(run, base, total_G) for run in rest}
    piece = forest(found, name_of(base))
    pieces = [piece]
    score_rows, lines = [], []
    for run in runs:
        bounds = accuracy_intervals(hits(_scores(run), total_G), total_G)
        score_rows.append(Row(name_of(run), score_cells(_scores(run), bounds), "ours" if run is base else ""))
        lines.append([name_of(run), *(_scores(run)[c] for c in COLUMNS)])
    tables: dict[str, Table] = {
        "compared": (("run", *COLUMNS), lines),
        "differences": (piece.columns, [list(line) for line in piece.rows]),
    }
    caption = f"Top-1 accuracy in percent with 95 % bootstrap intervals over the {sum(total_G):,} test images."
    about_gains = f"Difference to {name_of(base)} in points, with 95 % intervals; bold where the interval excludes 0."
    rows = [Row(name, [_gain(of[c]) for c in COLUMNS]) for name, of in found.items()]
    gains = card("In numbers", table(about_gains, ("run", *COLUMNS), rows))
    parts = part("Differences", "Differences", grid([figure(piece), gains]))
    parts += part("Scores", "Scores", table(caption, ("run", *COLUMNS), score_rows))
    if isinstance(base, Run):
        full = [run for run in runs if isinstance(run, Run) and same_images(run, base)]
        errors = flow([(name_of(run), run.predicted_N) for run in full], base.label_N, base.group_C)
        pieces.append(errors)
        parts += part("Errors", "Where errors go", grid([figure(errors)]))
        parts += part("Classes", "Classes that gained and lost most", *(_classes(r, base, tables) for r in full[1:]))
    return Report(document("compare.html", "Runs compared", parts, {"about": about}), pieces, tables)


def _gain(of: Difference | None) -> Cell:
    if of is None:
        return cell("–")
    bounds = f"{of.low:+.1f} to {of.high:+.1f}{'' if of.paired else ', unpaired'}"
    return cell(with_note(f"{of.value:+.1f}", bounds, strong=of.low > 0 or of.high < 0), of.value)


def forest(found: Mapping[str, Mapping[str, Difference | None]], base: str) -> Piece:
    """Each difference with its interval; a row a run, a colour a group."""
    rows, tips = [], {}
    with style():
        drawing, axes = panels(height=1.2 + 0.55 * len(found))
        axes.axvline(0, color=MUTED, linewidth=1)
        for k, column in enumerate(COLUMNS):
            shown = [(y, name, of[column]) for y, (name, of) in enumerate(found.items())]
            points = [(y + 0.16 * (k - 1.5), name, of) for y, name, of in shown if of is not None]
            for y, name, of in points:
                axes.plot([of.low, of.high], [y, y], color=GROUP_COLOUR[column], linewidth=2, alpha=0.5)
                rows.append([name, column, of.value, of.low, of.high, "paired" if of.paired else "unpaired"])
            axes.scatter([of.value for _, _, of in points], [y for y, _, _ in points], 26, GROUP_COLOUR[column],
                         label=column, gid=f"gain-{column}", zorder=3)  # fmt: skip
            tips[f"gain-{column}"] = [
                f"{name}, {column}: {of.value:+.1f} ({of.low:+.1f} to {of.high:+.1f})" for _, name, of in points
            ]
        axes.set_yticks(range(len(found)), [name.replace(", seed", ",\nseed") for name in found])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("difference, percent points")
        legend_above(axes)
    caption = f"Accuracy less that of {base}, with 95 % bootstrap intervals over the test images."
    columns = ("run", "group", "difference", "low", "high", "kind")
    return Piece("differences", "Differences to the first run", caption, drawing, columns, rows, tips)


def _classes(run: Run, base: Run, tables: dict[str, Table]) -> str:
    known = [k for k in range(len(base.classes)) if base.total_C[k]]
    change = {k: run.scores["per_class"][k] - base.scores["per_class"][k] for k in known}
    order = sorted(known, key=lambda k: -change[k])
    tables[f"classes-{run.run_id[:8] or 'run'}"] = (
        ("class", "group", "training images", "base", "run", "change"),
        [
            [
                base.classes[k],
                GROUPS[base.group_C[k]],
                int(base.count_C[k]),
                base.scores["per_class"][k],
                run.scores["per_class"][k],
                change[k],
            ]
            for k in order
        ],
    )
    shown = order if len(order) <= 2 * SHOWN_CLASSES else order[:SHOWN_CLASSES] + order[-SHOWN_CLASSES:]
    rows = [
        Row(
            base.classes[k],
            [
                cell(GROUPS[base.group_C[k]], kind="text"),
                cell(f"{base.count_C[k]:,}"),
                cell(number(base.scores["per_class"][k])),
                cell(number(run.scores["per_class"][k])),
                cell(f"{change[k]:+.1f}"),
            ],
        )
        for k in shown
    ]
    head = ("class", "group", "training images", "first, %", "this, %", "change")
    return table(f"{name_of(run)} against {name_of(base)}.", head, rows, words=(1,))
