"""One self-contained page of a run, and its pieces as files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfm.config.schema import GROUPS
from lfm.report import figures_method as method
from lfm.report import figures_scores as scored
from lfm.report import figures_training as trained
from lfm.report.draw import Piece, Table, save_svg, write_csv, write_piece
from lfm.report.html import (
    PIECES,
    Cell,
    Part,
    Row,
    card,
    cell,
    document,
    figure,
    grid,
    macro,
    number,
    part,
    published,
    table,
    with_note,
)
from lfm.report.published import Published
from lfm.report.run_page_errors import errors, space
from lfm.report.run_values import Other, Run
from lfm.report.stats import Interval, accuracy_intervals, hits
from lfm.report.tables import COLUMNS, adjusted_name

MOST_OTHERS = 15
NAMED_WEAK = 8


@dataclass(frozen=True)
class Report:
    """A page, its figures, and its tables as columns and rows."""

    html: str
    pieces: Sequence[Piece]
    tables: Mapping[str, Table]

    def figures(self) -> dict[str, str]:
        """Name -> SVG of each figure."""
        return {piece.name: save_svg(piece) for piece in self.pieces}

    def write(self, folder: Path) -> None:
        """report.html, figures/ and tables/."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.html").write_text(self.html, encoding="utf-8")
        for piece in self.pieces:
            write_piece(piece, folder)
        for name, (columns, rows) in self.tables.items():
            write_csv(folder / "tables" / f"{name}.csv", columns, rows)


def run_page(run: Run, published_rows: Sequence[Published] = (), rebuild: str = "") -> Report:
    """The page of a run.

    Args:
        run: what the page shows.
        published_rows: published scores on the run's data set.
        rebuild: the command that makes the page again.
    """
    tables: dict[str, Table] = {"classes": class_table(run)}
    parts, pieces = _scores(run, published_rows, tables)
    for make in (_method, errors, space, _training):
        more_parts, more_pieces = make(run, tables)
        parts += more_parts
        pieces += more_pieces
    parts += part("Data", "What is wrong with the data", macro(PIECES, "problems", run.evidence["problems"]))
    parts += part("Classes", "Each class", macro("run_parts.html", "class_search", "class-table"), _each_class(run))
    return Report(document("run.html", run.title, parts, _head(run) | {"rebuild": rebuild}), pieces, tables)


def _head(run: Run) -> dict[str, Any]:
    bounds = run.intervals(run.predicted_N)
    return {
        "trained": run.evidence["trained"],
        "tiles": [(name, number(run.scores[name]), _span(bounds[name]), name) for name in ("all", *GROUPS)],
        "images": run.scores["images"],
        "provenance": run.provenance,
    }


def _span(bounds: Interval | None) -> str:
    return f"{bounds[0]:.1f} to {bounds[1]:.1f}" if bounds else "no class"


def score_cells(scores: Mapping[str, float | None], bounds: Mapping[str, Interval | None]) -> list[Cell]:
    """Cells of many, medium, few and all, each with its interval if there is one."""
    return [
        cell(
            with_note(number(scores[c]), _span(bounds[c]))
            if scores[c] is not None and bounds.get(c)
            else number(scores[c])
        )
        for c in COLUMNS
    ]


@dataclass(frozen=True)
class _Scored:
    """A row of the score table: `shown` is its name on the page, `name` its name in the CSV."""

    name: str
    shown: str
    kind: str
    weights: str
    scores: Mapping[str, Any]
    bounds: Mapping[str, Any]

    def row(self) -> Row:
        cells = [*score_cells(self.scores, self.bounds), cell(self.weights, kind="text")]
        return Row(self.shown, cells, "ours" if self.kind == "this run" else "")

    def values(self) -> list[Any]:
        spans = [value for c in COLUMNS for value in (self.bounds.get(c) or ("", ""))]
        return [self.name, self.kind, self.weights, *(self.scores[c] for c in COLUMNS), *spans]


def _scored_runs(run: Run) -> list[_Scored]:
    """This run, the model before training, and the other runs of these data."""
    weights = str(run.provenance["weights"])
    found = [
        _Scored(name, name, kind, weights, scores, run.intervals(predicted_N))
        for name, kind, scores, predicted_N in (
            (run.method, "this run", run.scores, run.predicted_N),
            (run.before, "untrained", run.untrained, run.untrained_N),
        )
    ]
    ours = _adjusted(run.method, "", "this run, adjusted", run.adjusted, run)
    others = []
    for other in run.others[:MOST_OTHERS]:
        bounds = accuracy_intervals(hits(other.scores, run.total_G), run.total_G)
        shown = with_note(other.name, _other(other))
        others.append(_Scored(other.name, shown, "other run", weights, other.scores, bounds))
        others += _adjusted(other.name, _other(other), "other run, adjusted", other.adjusted, run)
    return [found[0], *ours, *found[1:], *others]


def _adjusted(name: str, note: str, kind: str, scores: Mapping[str, Any] | None, run: Run) -> list[_Scored]:
    """The row of adjusted logits beneath a model's own, if there is one."""
    if scores is None:
        return []
    name = adjusted_name(name, scores["strength"])
    bounds = accuracy_intervals(hits(scores, run.total_G), run.total_G)
    shown = with_note(name, note) if note else name
    return [_Scored(name, shown, kind, str(run.provenance["weights"]), scores, bounds)]


def _scores(run: Run, published_rows: Sequence[Published], tables: dict[str, Table]) -> tuple[list[Part], list[Piece]]:
    ours = _scored_runs(run)
    theirs = [
        _Scored(p.method, published(p.method, p.source), f"published, {p.source}", p.weights, p.scores, {})
        for p in published_rows
    ]
    columns = ["method", "kind", "weights", *COLUMNS, *(f"{c} {end}" for c in COLUMNS for end in ("low", "high"))]
    tables["scores"] = (columns, [line.values() for line in (*ours, *theirs)])
    heading = [Row("Published, not ours", kind="head")] if theirs else []
    rows = [*(line.row() for line in ours), *heading, *(line.row() for line in theirs)]
    caption = "Top-1 accuracy in percent and 95 % intervals. Compare only rows with the same weights."
    if (more := len(run.others) - MOST_OTHERS) > 0:
        caption += f" {more} more runs of these data are in MLflow."
    piece = _score_figure(run)
    content = figure(piece), table(caption, ("method", *COLUMNS, "weights"), rows, words=(5,))
    return part("Scores", "Compared with untrained, other runs and published", *content), [piece]


def _score_figure(run: Run) -> Piece:
    shown = {run.before: run.untrained, run.method: run.scores}
    spans = {run.before: run.intervals(run.untrained_N), run.method: run.intervals(run.predicted_N)}
    if run.baseline:
        base = run.baseline
        shown = {run.before: run.untrained, base.method: base.scores, run.method: run.scores}
        spans[base.method] = base.intervals(base.predicted_N)
    return scored.scores(shown, spans)


def _other(other: Other) -> str:
    return f"seed {other.seed}" + (f" · run {other.run_id[:8]}" if other.run_id else "")


def _method(run: Run, tables: dict[str, Table]) -> tuple[list[Part], list[Piece]]:
    evidence = run.evidence
    stages = evidence["stages"]
    first = stages[min(stages)]
    pieces = [
        method.class_probability(
            run.classes, run.count_C, first["seen"], first["gamma"], first["gamma_effective"], evidence["pairing"]
        )
    ]
    if evidence["shifts"]:
        pieces.append(method.own_label(run.classes, run.count_C, stages, evidence["threshold"]))
    warning = macro("run_parts.html", "collapsing", _collapsing(run), evidence["threshold"])
    return part("Method", "What training sees", warning, grid(map(figure, pieces))), pieces


def _collapsing(run: Run) -> list[dict[str, Any]]:
    """The stages in which classes are under the threshold of own-label mass, the lowest classes named."""
    found: list[dict[str, Any]] = []
    for stage, of in run.evidence["stages"].items() if run.evidence["shifts"] else ():
        own = of["own_label_mass"]
        under = sorted((k for k in range(len(own)) if own[k] < run.evidence["threshold"]), key=lambda k: own[k])
        lowest = [(run.classes[k], own[k]) for k in under[:NAMED_WEAK]]
        if under:
            found.append({"number": stage, "under": len(under), "classes": len(own), "lowest": lowest})
    return found


def _training(run: Run, tables: dict[str, Table]) -> tuple[list[Part], list[Piece]]:
    piece = trained.curves(run.curves)
    pieces = [piece] if piece else []
    pieces += [trained.sweep(of) for of in run.sweeps]
    times = trained.seconds(run.curves, int(run.count_C.sum()))
    tables["time"] = (("stage", "epochs", "seconds", "images per second"), [list(line) for line in times])
    rows = [
        Row(f"stage {s}", [cell(str(epochs)), cell(number(took)), cell(number(speed, 0))])
        for s, epochs, took, speed in times
    ]
    caption = "Time in training steps, without scoring and start-up."
    speed = table(caption, ("stage", "epochs", "seconds", "images/s"), rows) if rows else ""
    content = grid([*map(figure, pieces), card("Time", speed) if speed else ""]) if pieces else ""
    return part("Training", "Training", content), pieces


def class_table(run: Run) -> Table:
    """Every class: group, images, accuracies, p(Y), own-label mass."""
    stages = run.evidence["stages"]
    first = stages[min(stages)]
    columns = [
        "class",
        "group",
        "training images",
        "test images",
        f"{run.before}, %",
        f"{run.method}, %",
        "p(Y)",
        "own-label mass",
    ]
    rows = [
        [
            name, GROUPS[run.group_C[k]], int(run.count_C[k]), int(run.total_C[k]), run.untrained["per_class"][k],
            run.scores["per_class"][k], first["seen"][k], first["own_label_mass"][k],
        ]
        for k, name in enumerate(run.classes)
    ]  # fmt: skip
    return columns, rows


def _each_class(run: Run) -> str:
    columns, lines = class_table(run)
    rows = []
    for name, group, train, test, before, after, seen, own in lines:
        cells = [cell(group, kind="text"), cell(f"{train:,}", train), cell(f"{test:,}", test), _accuracy(before)]
        rows.append(Row(name, [*cells, _accuracy(after, group), cell(f"{seen:.4f}", seen), cell(f"{own:.2f}", own)]))
    caption = "Press a heading to sort by it. p(Y) and own-label mass are those of stage 1."
    return table(caption, columns, rows, sortable="class-table", words=(1,))


def _accuracy(value: float | None, bar: str = "") -> Cell:
    """A cell that is sorted by its number, with a bar in the colour of a group if asked for; absent ones come last."""
    if value is None:
        return Cell(number(None), sort="")
    return cell(macro(PIECES, "bar", value, bar, number(value)) if bar else number(value), value)
