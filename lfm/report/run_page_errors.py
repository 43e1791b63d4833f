"""The parts of a run's page on errors: who is taken for whom, where boundaries and images lie, the worst classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lfm.config.schema import GROUPS
from lfm.report import figures_method as method
from lfm.report import figures_scores as scored
from lfm.report import figures_space as where
from lfm.report.draw import Piece, Table
from lfm.report.html import Part, Row, card, cell, figure, grid, macro, number, part, table
from lfm.report.run_values import Run


def errors(run: Run, tables: dict[str, Table]) -> tuple[list[Part], list[Piece]]:
    """The part on errors and its figures; adds to the tables."""
    group_N = run.group_C[run.label_N]
    right_N = run.predicted_N == run.label_N
    reliability, error = scored.reliability(run.confidence_N, right_N, group_N)
    tables["calibration-error"] = (("group", "expected calibration error, %"), [[k, v] for k, v in error.items()])
    pieces = [
        scored.accuracy_by_count(run.classes, run.count_C, run.group_C, run.scores["per_class"]),
        scored.flow(run.models, run.label_N, run.group_C),
        reliability,
    ]
    similar = run.evidence["similarity"]
    curve = {run.before: similar["curve"]["untrained"], run.method: similar["curve"]["trained"]}
    rho = {run.before: similar["rho"]["untrained"], run.method: similar["rho"]["trained"]}
    pieces.append(method.similarity(curve, rho, similar["pairs"]))
    near = run.evidence["affinity"]
    names = [run.classes[k] for k in near["classes"]]
    shares = {name: _shares(run, predicted_N, near["classes"]) for name, predicted_N in (run.models[0], run.models[-1])}
    pieces.append(method.affinity(names, near["partner"], shares, run.evidence["tau"]))
    confusions = grid([figure(pieces[-1]), _confused(run, tables)])
    return part("Errors", "Where it goes wrong", grid(map(figure, pieces[:-1])), confusions, _worst(run)), pieces


def _shares(run: Run, predicted_N: Any, classes: Sequence[int]) -> Any:
    """Percent of each chosen class's images taken for each chosen class, (K, K)."""
    place = np.full(len(run.classes), -1)
    place[list(classes)] = np.arange(len(classes))
    truth, answer = place[run.label_N], place[predicted_N]
    inside = (truth >= 0) & (answer >= 0)
    size = len(classes)
    count = np.bincount(truth[inside] * size + answer[inside], minlength=size * size).reshape(size, size)
    return 100 * count / np.maximum(run.total_C[list(classes)], 1)[:, None]


def _confused(run: Run, tables: dict[str, Table]) -> str:
    rows, lines = [], []
    for of in run.evidence["confused"]:
        truth, answer = run.classes[of["truth"]], run.classes[of["answer"]]
        share = 100 * of["images"] / int(run.total_C[of["truth"]])
        lines.append([truth, answer, of["images"], share, of["cosine"], of["partner"]])
        numbers = [f"{of['images']:,}", number(share), f"{of['cosine']:.2f}", f"{100 * of['partner']:.1f}"]
        rows.append(Row(truth, [cell(answer, kind="text"), *map(cell, numbers)]))
    tables["confused"] = (("truth", "answer", "images", "percent of the truth", "text cosine", "p_ls"), lines)
    head = ("truth", "taken for", "images", "% of the class", "text cosine", "p_ls, %")
    caption = "The most frequent confusions. p_ls: how often local sampling draws the answer as partner of the truth."
    return card("Most frequent confusions", table(caption, head, rows, words=(1,))) if rows else ""


def _worst(run: Run) -> str:
    classes = [
        {
            "name": run.classes[of["class"]],
            "accuracy": run.scores["per_class"][of["class"]],
            "group": GROUPS[run.group_C[of["class"]]],
            "count": int(run.count_C[of["class"]]),
            "images": [{**image, "taken_for": run.classes[image["taken_for"]]} for image in of["images"]],
        }
        for of in run.evidence["worst"]
    ]
    return macro("run_parts.html", "worst", classes) if classes else ""


def space(run: Run, tables: dict[str, Table]) -> tuple[list[Part], list[Piece]]:
    """The part on boundaries and features, with the baseline's where it has the same pairs; adds to the tables."""
    evidence = run.evidence
    pairs = [(run.classes[t], run.classes[h]) for t, h in evidence["pairs"]]
    margins, places = {run.before: evidence["margins"]["untrained"]}, {run.before: evidence["embedding"]["untrained"]}
    base = run.baseline.evidence if run.baseline else {}
    if run.baseline and base["pairs"] == evidence["pairs"]:
        margins[run.baseline.method] = base["margins"]["trained"]
        if base["embedding"]["class"] == evidence["embedding"]["class"]:
            places[run.baseline.method] = base["embedding"]["trained"]
    margins[run.method], places[run.method] = evidence["margins"]["trained"], evidence["embedding"]["trained"]
    pieces = []
    if pairs:
        piece, rows = where.boundaries(pairs, margins)
        tables["boundary"] = (piece.columns, rows)
        pieces = [piece, where.margin_histograms(pairs, margins)]
    content = [grid(map(figure, pieces))]
    if places[run.method]:
        names = [run.classes[k] for k in evidence["embedding"]["names"]]
        kinds = evidence["embedding"]["class"]
        pieces.append(where.tsne(names, kinds, places))
        content.append(macro("run_parts.html", "cloud", pieces[-1], names, {"kind": kinds, "places": places}))
    return part("Space", "Images and boundaries", *content), pieces
