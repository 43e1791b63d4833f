"""The parts of a run's page on errors: who is taken for whom, where boundaries and images lie, the worst classes."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lfm.config.schema import GROUPS
from lfm.report import figures_method as method
from lfm.report import figures_scores as scored
from lfm.report import figures_space as where
from lfm.report.draw import Piece, Table
from lfm.report.html import cell, figure, grid, number, part, row, table, text
from lfm.report.run_values import Run


def errors(run: Run, tables: dict[str, Table]) -> tuple[dict[str, str], list[Piece]]:
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
    beside = f"<div class=grid>{figure(pieces[-1])}{_confused(run, tables)}</div>"
    return part("Errors", "Where it goes wrong", grid(pieces[:-1]), beside, _worst(run)), pieces


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
        cells = [
            cell(text(answer), kind="text"),
            cell(f"{of['images']:,}"),
            cell(number(share)),
            cell(f"{of['cosine']:.2f}"),
        ]
        rows.append(row(text(truth), [*cells, cell(f"{100 * of['partner']:.1f}")]))
    tables["confused"] = (("truth", "answer", "images", "percent of the truth", "text cosine", "p_ls"), lines)
    head = ("truth", "taken for", "images", "% of the class", "text cosine", "p_ls, %")
    caption = "The most frequent confusions. p_ls: how often local sampling draws the answer as partner of the truth."
    return (
        f"<div class=card><h3>Most frequent confusions</h3>{table(caption, head, rows, words=(1,))}</div>"
        if rows
        else ""
    )


def _worst(run: Run) -> str:
    items = []
    for of in run.evidence["worst"]:
        k = of["class"]
        images = "".join(
            f'<figure><img alt="{text(run.classes[k])} taken for {text(run.classes[i["taken_for"]])}" '
            f'src="{i["uri"]}"><figcaption>{text(run.classes[i["taken_for"]])}, {100 * i["confidence"]:.0f} %'
            f"</figcaption></figure>"
            for i in of["images"]
        )
        told = f"{number(run.scores['per_class'][k])} %, {GROUPS[run.group_C[k]]}, {run.count_C[k]:,} training images"
        items.append(f"<li class=card><h3>{text(run.classes[k])}</h3><p class=quiet>{told}</p><div>{images}</div></li>")
    told = "<p class=quiet>Of each, the most confident wrong answers: what the image was taken for, and how sure.</p>"
    return f"<h3>Worst classes</h3>{told}<ul class=worst>{''.join(items)}</ul>" if items else ""


def space(run: Run, tables: dict[str, Table]) -> tuple[dict[str, str], list[Piece]]:
    """The part on boundaries and features, beside the baseline's where it has the same pairs; adds to the tables."""
    found = run.evidence
    pairs = [(run.classes[t], run.classes[h]) for t, h in found["pairs"]]
    margins, places = {run.before: found["margins"]["untrained"]}, {run.before: found["embedding"]["untrained"]}
    base = run.baseline.evidence if run.baseline else {}
    if run.baseline and base["pairs"] == found["pairs"]:
        margins[run.baseline.method] = base["margins"]["trained"]
        if base["embedding"]["class"] == found["embedding"]["class"]:
            places[run.baseline.method] = base["embedding"]["trained"]
    margins[run.method], places[run.method] = found["margins"]["trained"], found["embedding"]["trained"]
    pieces = []
    if pairs:
        piece, rows = where.boundaries(pairs, margins)
        tables["boundary"] = (piece.columns, rows)
        pieces = [piece, where.margin_histograms(pairs, margins)]
    cloud = ""
    if places[run.method]:
        names = [run.classes[k] for k in found["embedding"]["names"]]
        piece = where.tsne(names, found["embedding"]["class"], places)
        cloud = _cloud(piece, names, found["embedding"]["class"], places)
        content = part("Space", "Images and boundaries", grid(pieces), cloud)
        return content, [*pieces, piece]
    return part("Space", "Images and boundaries", grid(pieces)), pieces


def _cloud(piece: Piece, names: Sequence[str], class_M: Sequence[int], places: Mapping[str, Any]) -> str:
    tones = ("blue", "orange", "green", "purple", "red")
    legend = "".join(
        f'<li><span style="color:var(--{tones[k // 2 % 5]})" aria-hidden=true>{"▲" if k % 2 else "●"}</span> '
        f"{text(name)}</li>"
        for k, name in enumerate(names)
    )
    canvases = "".join(
        f'<div><h3>{text(model)}</h3><canvas tabindex=0 role=img data-model="{text(model)}" aria-label="t-SNE of the '
        f'image features of {text(model)}: {len(places[model])} points; arrow keys turn it"></canvas></div>'
        for model in places
    )
    data = json.dumps({"kind": list(class_M), "places": dict(places)}, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<figure id="figure-tsne"><h3>{text(piece.title)}</h3><div class=space>{canvases}</div>'
        "<label class=turn>turn <input id=turn type=range min=0 max=360 value=34></label>"
        f"<ul class=legend>{legend}</ul><figcaption>{text(piece.caption)}</figcaption>"
        f'<script type="application/json" id="cloud">{data}</script></figure>'
    )
