"""A page of several runs: paired differences to the first where both were scored on the same test images."""

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import numpy as np

from lfm.config.schema import GROUPS
from lfm.report.draw import GROUP_COLOUR, MUTED, Piece, Table, legend_above, panels, style
from lfm.report.figures_scores import flow
from lfm.report.html import Cell, Part, Row, card, cell, document, figure, grid, number, part, table, with_note
from lfm.report.run_page import Report, score_cells
from lfm.report.run_values import Run
from lfm.report.stats import Difference, accuracy_intervals, hits, paired_differences, unpaired_differences
from lfm.report.tables import COLUMNS, adjusted_name

SHOWN_CLASSES = 10
TICK = 34
"""Letters of a run's name in a line of a figure's axis."""
OTHER_IMAGES = "other test images"
"""Kind of a difference that also holds how hard the two sets of test images are."""
DIFFERENCE_COLUMNS = ("run", "group", "difference", "low", "high", "kind")
Differences = Mapping[str, Difference | None]


def name_of(run: Run) -> str:
    """Method, seed, the date where that tells runs apart, and the beginning of the run's id."""
    date = f", {run.date}" if run.date else ""
    return f"{run.method}, seed {run.provenance['seed']}{date} ({run.run_id[:8]})"


def differences(ours: Run, base: Run) -> dict[str, Difference | None]:
    """Accuracy less the base's: paired where both answered the same test images, else each over its own images.

    The shot groups of the same test images may be others, as after training images were added: then all images are
    still compared in pairs, the groups are not.
    """
    unpaired = unpaired_differences(ours.scores, base.scores, ours.total_G, base.total_G)
    if not same_images(ours, base):
        return unpaired
    right_N, base_N = ours.predicted_N == ours.label_N, base.predicted_N == base.label_N
    paired = paired_differences(right_N, base_N, base.group_C[base.label_N])
    return paired if same_groups(ours, base) else unpaired | {"all": paired["all"]}


def same_images(ours: Run, base: Run) -> bool:
    """Whether two runs answered the same test images with the same labels."""
    return bool(base.test_images) and ours.test_images == base.test_images


def same_groups(ours: Run, base: Run) -> bool:
    """Whether the classes of two runs lie in the same shot groups."""
    return np.array_equal(ours.group_C, base.group_C)


def compare_page(runs: Sequence[Run], about: Mapping[str, Any]) -> Report:
    """The page.

    Args:
        runs: the first is what the others are held against. Those with other test images get a table of their own.
        about: data, split and shot rule of the first.
    """
    base, *rest = runs
    same = [run for run in rest if same_images(run, base)]
    other = [run for run in rest if not same_images(run, base)]
    tables: dict[str, Table] = {
        "compared": (
            ("run", *COLUMNS),
            [[name, *(scores[c] for c in COLUMNS)] for run in runs for name, scores in _scored(run).items()],
        ),
    }
    parts, pieces = _differences(base, same) if same else ([], [])
    lines = [list(line) for piece in pieces for line in piece.rows]
    parts += _scores([base, *same])
    if other:
        more, more_lines = _other_images(base, other)
        parts, lines = parts + more, lines + more_lines
    tables["differences"] = (DIFFERENCE_COLUMNS, lines)
    full = [base, *(run for run in same if same_groups(run, base))]
    if len(full) > 1:
        errors = flow([(name_of(run), run.predicted_N) for run in full], base.label_N, base.group_C)
        pieces.append(errors)
        parts += part("Errors", "Where errors go", grid([figure(errors)]))
        parts += part("Classes", "Classes that gained and lost most", *(_classes(r, base, tables) for r in full[1:]))
    return Report(document("compare.html", "Runs compared", parts, {"about": about}), pieces, tables)


def _differences(base: Run, same: Sequence[Run]) -> tuple[list[Part], list[Piece]]:
    found = {name_of(run): differences(run, base) for run in same}
    piece = forest(found, name_of(base))
    return part("Differences", "Differences", grid([figure(piece), card("In numbers", _gains(found, base))])), [piece]


def _gains(found: Mapping[str, Differences], base: Run) -> str:
    caption = f"Difference to {name_of(base)} in points, with 95 % intervals; bold where the interval excludes 0."
    rows = [Row(name, [_gain(of[c]) for c in COLUMNS]) for name, of in found.items()]
    return table(caption, ("run", *COLUMNS), rows)


def _scores(runs: Sequence[Run]) -> list[Part]:
    """Scores of the first run and of those on its test images."""
    rows = [
        Row(name, _score_cells(run, scores), "ours" if run is runs[0] and scores is run.scores else "")
        for run in runs
        for name, scores in _scored(run).items()
    ]
    images = f"{sum(runs[0].total_G):,} test images"
    caption = f"Top-1 accuracy in percent with 95 % bootstrap intervals over the {images}."
    return part("Scores", "Scores", table(caption, ("run", *COLUMNS), rows))


def _scored(run: Run) -> dict[str, Mapping[str, Any]]:
    """The scores of a run by the names of their rows: its own, and with adjusted logits where there are such."""
    name = name_of(run)
    adjusted = {adjusted_name(name, run.adjusted["strength"]): run.adjusted} if run.adjusted else {}
    return {name: run.scores} | adjusted


def _score_cells(run: Run, scores: Mapping[str, Any]) -> list[Cell]:
    return score_cells(scores, accuracy_intervals(hits(scores, run.total_G), run.total_G))


def _other_images(base: Run, other: Sequence[Run]) -> tuple[list[Part], list[list[Any]]]:
    """Runs that were scored on other test images, and the rows of their differences."""
    found = {name_of(run): differences(run, base) for run in other}
    lines = [
        [name, column, gain.value, gain.low, gain.high, OTHER_IMAGES]
        for name, of in found.items()
        for column, gain in of.items()
        if gain
    ]
    rows = [
        Row(name, [*_score_cells(run, scores), cell(f"{sum(run.total_G):,}")])
        for run in other
        for name, scores in _scored(run).items()
    ]
    caption = (
        "Top-1 accuracy in percent with 95 % intervals, each over the run's own test images. They are not those of "
        f"{name_of(base)}: a difference may be one of the images, not of the models."
    )
    scores = table(caption, ("run", *COLUMNS, "test images"), rows)
    return part("Other images", "Runs scored on other test images", scores, _gains(found, base)), lines


def _gain(of: Difference | None) -> Cell:
    if of is None:
        return cell("–")
    bounds = f"{of.low:+.1f} to {of.high:+.1f}{'' if of.paired else ', unpaired'}"
    return cell(with_note(f"{of.value:+.1f}", bounds, strong=of.low > 0 or of.high < 0), of.value)


def forest(found: Mapping[str, Differences], base: str) -> Piece:
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
        axes.set_yticks(
            range(len(found)), ["\n".join(wrap(name, TICK, max_lines=4, placeholder=" ...")) for name in found]
        )
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("difference, percent points")
        legend_above(axes)
    caption = f"Accuracy less that of {base}, with 95 % bootstrap intervals over the test images."
    return Piece("differences", "Differences to the first run", caption, drawing, DIFFERENCE_COLUMNS, rows, tips)


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
