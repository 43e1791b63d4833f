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
from lfm.report.html import cell, document, facts, figure, grid, number, part, row, table, text
from lfm.report.published import Published
from lfm.report.run_page_errors import errors, space
from lfm.report.run_values import Other, Run
from lfm.report.stats import Interval, accuracy_intervals, hits
from lfm.report.tables import COLUMNS

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


def run_page(run: Run, published: Sequence[Published] = (), rebuild: str = "") -> Report:
    """The page of a run.

    Args:
        run: its values.
        published: rows of its data set.
        rebuild: the command that makes the page again.
    """
    tables: dict[str, Table] = {"classes": class_table(run)}
    first, pieces = _scores(run, published, tables)
    sections = first
    for make in (_method, errors, space, _training):
        found, more = make(run, tables)
        sections |= found
        pieces += more
    sections |= part("Data", "What is wrong with the data", _problems(run))
    sections |= part("Classes", "Each class", _class_markup(run))
    footer = (
        f"<p>Made by lfm from the run's metrics artifact{f': <code>{text(rebuild)}</code>' if rebuild else ''}.</p>"
    )
    return Report(document(run.title, _head(run), sections, footer), pieces, tables)


def _head(run: Run) -> str:
    bounds = run.intervals(run.predicted_N)
    tiles = "".join(
        f"<div class={name}><dt>{name}</dt>"
        f"<dd>{number(run.scores[name])}<small>{_span(bounds[name])}</small></dd></div>"
        for name in ("all", *GROUPS)
    )
    return (
        f"<p>{text(run.evidence['trained'])}</p>"
        f'<dl class="tiles">{tiles}</dl><p class="quiet">Top-1 accuracy on {run.scores["images"]:,} test images in '
        f"percent, with 95 % bootstrap intervals over the images. They do not cover the difference between "
        f"seeds.</p>{facts(run.provenance)}"
    )


def _span(bounds: Interval | None) -> str:
    return f"{bounds[0]:.1f} to {bounds[1]:.1f}" if bounds else "no class"


def score_cells(scores: Mapping[str, float | None], bounds: Mapping[str, Interval | None]) -> list[str]:
    """Cells of many, medium, few and all, each with its interval if there is one."""
    return [
        cell(
            number(scores[c])
            + (f"<small>{_span(bounds[c])}</small>" if scores[c] is not None and bounds.get(c) else "")
        )
        for c in COLUMNS
    ]


def _scores(run: Run, published: Sequence[Published], tables: dict[str, Table]) -> tuple[dict[str, str], list[Piece]]:
    lines: list[list[Any]] = []
    rows = []

    def add(
        name: str, kind: str, weights: str, scores: Mapping[str, Any], bounds: Mapping[str, Any], markup: str
    ) -> None:
        rows.append(
            row(
                markup,
                [*score_cells(scores, bounds), cell(text(weights), kind="text")],
                "ours" if kind == "this run" else "",
            )
        )
        spans = [value for c in COLUMNS for value in (bounds.get(c) or ("", ""))]
        lines.append([name, kind, weights, *(scores[c] for c in COLUMNS), *spans])

    weights = str(run.provenance["weights"])
    add(run.method, "this run", weights, run.scores, run.intervals(run.predicted_N), text(run.method))
    add(run.before, "untrained", weights, run.untrained, run.intervals(run.untrained_N), text(run.before))
    for other in run.others[:MOST_OTHERS]:
        bounds = accuracy_intervals(hits(other.scores, run.total_G), run.total_G)
        add(other.name, "other run", weights, other.scores, bounds, f"{text(other.name)}<small>{_other(other)}</small>")
    if published:
        rows.append(f"<tr class=head><th colspan={len(COLUMNS) + 2} scope=rowgroup>Published, not ours</th></tr>")
    for line in published:
        mark = f"{text(line.method)} <span class=mark>published</span><small>{text(line.source)}</small>"
        add(line.method, f"published, {line.source}", line.weights, line.scores, {}, mark)
    columns = ["method", "kind", "weights", *COLUMNS, *(f"{c} {end}" for c in COLUMNS for end in ("low", "high"))]
    tables["scores"] = (columns, lines)
    caption = "Top-1 accuracy in percent and 95 % intervals. Compare only rows with the same weights."
    if more := len(run.others) - MOST_OTHERS:
        caption += f" {more} more runs of these data are in MLflow." if more > 0 else ""
    shown = {run.before: run.untrained, run.method: run.scores}
    spans = {run.before: run.intervals(run.untrained_N), run.method: run.intervals(run.predicted_N)}
    if run.baseline:
        base = run.baseline
        shown = {run.before: run.untrained, base.method: base.scores, run.method: run.scores}
        spans[base.method] = base.intervals(base.predicted_N)
    piece = scored.scores(shown, spans)
    content = figure(piece), table(caption, ("method", *COLUMNS, "weights"), rows, words=(5,))
    return part("Scores", "Beside untrained, other runs and published", *content), [piece]


def _other(other: Other) -> str:
    return f"seed {text(other.seed)}" + (f" · run {text(other.run_id[:8])}" if other.run_id else "")


def _method(run: Run, tables: dict[str, Table]) -> tuple[dict[str, str], list[Piece]]:
    found = run.evidence
    stages = found["stages"]
    first = stages[min(stages)]
    pieces = [
        method.class_probability(
            run.classes, run.count_C, first["seen"], first["gamma"], first["gamma_effective"], found["pairing"]
        )
    ]
    if found["shifts"]:
        pieces.append(method.own_label(run.classes, run.count_C, stages, found["threshold"]))
    return part("Method", "What training sees", _collapsing(run), grid(pieces)), pieces


def _collapsing(run: Run) -> str:
    """The classes under the threshold of own-label mass in each stage, the lowest named."""
    threshold, told = run.evidence["threshold"], []
    for stage, of in run.evidence["stages"].items():
        own = of["own_label_mass"]
        under = sorted((k for k in range(len(own)) if own[k] < threshold), key=lambda k: own[k])
        if under and run.evidence["shifts"]:
            names = ", ".join(f"{text(run.classes[k])} ({own[k]:.2f})" for k in under[:NAMED_WEAK])
            told.append(
                f"<p><strong>Stage {stage}: {len(under):,} of {len(own):,} classes are about to collapse</strong>"
                f", with own-label mass under {threshold:g}; the lowest: {names}. Lower stage{stage}.alpha (auto finds "
                "the largest safe one) or raise mixup.tau.</p>"
            )
    return "".join(told)


def _training(run: Run, tables: dict[str, Table]) -> tuple[dict[str, str], list[Piece]]:
    piece = trained.curves(run.curves)
    pieces = [piece] if piece else []
    pieces += [trained.sweep(of) for of in run.sweeps]
    times = trained.seconds(run.curves, int(run.count_C.sum()))
    tables["time"] = (("stage", "epochs", "seconds", "images a second"), [list(line) for line in times])
    rows = [
        row(f"stage {s}", [cell(str(epochs)), cell(number(took)), cell(number(speed, 0))])
        for s, epochs, took, speed in times
    ]
    caption = "Time in training steps, without scoring and start-up."
    speed = table(caption, ("stage", "epochs", "seconds", "images/s"), rows) if rows else ""
    card = f"<div class=card><h3>Time</h3>{speed}</div>" if speed else ""
    content = f"<div class=grid>{''.join(map(figure, pieces))}{card}</div>" if pieces else ""
    return part("Training", "Training", content), pieces


def _problems(run: Run) -> str:
    items = "".join(
        f"<li><strong>{item['count']:,} {text(item['what'])}.</strong> {text(item['how'])}"
        + "".join(f"<br><span class=quiet>{text(example)}</span>" for example in item["examples"])
        + "</li>"
        for item in run.evidence["mend"]
    )
    return f"<ol>{items}</ol>" if items else "<p>Nothing to mend was found.</p>"


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


def _class_markup(run: Run) -> str:
    columns, lines = class_table(run)
    rows = []
    for name, group, train, test, before, after, seen, own in lines:
        bar = "" if after is None else f'<span class="bar {group}" style="width:{after:.1f}%"></span>'
        cells = [cell(group, kind="text"), cell(f"{train:,}", train), cell(f"{test:,}", test), _scored(before)]
        rows.append(row(text(name), [*cells, _scored(after, bar), cell(f"{seen:.4f}", seen), cell(f"{own:.2f}", own)]))
    search = '<input type=search data-table="class-table" placeholder="Find a class" aria-label="Find a class">'
    caption = "Press a heading to sort by it. p(Y) and own-label mass are those of stage 1."
    return search + table(caption, columns, rows, sortable="class-table", words=(1,))


def _scored(value: float | None, bar: str = "") -> str:
    return cell(number(value) + bar, value) if value is not None else '<td data-v="">–</td>'
