"""The paper's Tables 1 to 5: ours and published, and the command that fills an empty cell."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from lfm.report.html import PIECES, Cell, Part, Row, cell, document, macro, number, part, published, table, with_note
from lfm.report.published import TABLE_1, TABLE_2, TABLE_2_DATA, TABLE_3, TABLE_4, TABLE_5, Published
from lfm.report.run_page import Report
from lfm.report.tables import COLUMNS

PLAIN = {"mixup.name": "none"}
METHODS: dict[str, dict[str, Any]] = {
    "zero-shot": {},
    "CE": PLAIN,
    **{name: PLAIN | {"loss.name": name.lower()} for name in ("BalCE", "Focal", "LDAM", "MMS")},
    "LFM + CE": {},
    "LFM + MMS": {"loss.name": "mms"},
    "Mixup": {"mixup.name": "mixup"},
    "Remix": {"mixup.name": "remix"},
    "LFM": {},
}
PRESETS = {"cifar10": "cifar10-lt", "cifar100": "cifar100-lt", "imagenet-lt": "imagenet-lt", "places-lt": "places-lt"}
PLACES = {"imagenet-lt": ("LISTS", "IMAGENET"), "places-lt": ("LISTS", "PLACES365")}
TITLES = {
    1: ("CIFAR100-LT, imbalance 100, ViT-B/32", TABLE_1),
    2: ("CIFAR10-LT and CIFAR100-LT, all images, by imbalance factor", TABLE_2),
    3: ("ImageNet-LT, ViT-B/16", TABLE_3),
    4: ("Places-LT, ViT-B/16", TABLE_4),
    5: ("Mixup techniques, CIFAR100-LT, imbalance 100, CE, ViT-B/16", TABLE_5),
}


@dataclass(frozen=True)
class Task:
    """What to run for a row.

    Args:
        preset: its name.
        overrides: of its fields.
        untrained: the row is of the model before training.
    """

    preset: str
    overrides: Mapping[str, Any]
    untrained: bool = False

    @property
    def command(self) -> str:
        """That fills the row."""
        sets = dict(self.overrides)
        if self.untrained:
            sets |= {"stage1.epochs": 0, "stage2.epochs": 0}
        lists = PLACES.get(self.preset)
        if lists:
            sets |= {"data.source": lists[0], "data.images": lists[1]}
        return shlex.join(["lfm", "run", self.preset, *(p for k, v in sets.items() for p in ("--set", f"{k}={v}"))])


@dataclass(frozen=True)
class Ours:
    """Our runs of a task: mean scores and their deviation over seeds."""

    scores: Mapping[str, float | None]
    deviation: Mapping[str, float | None]
    seeds: int

    @classmethod
    def of(cls, runs: Sequence[Mapping[str, float | None]]) -> "Ours":
        """From the scores of each seed."""
        columns = {c: [value for run in runs if (value := run[c]) is not None] for c in COLUMNS}
        return cls(
            {c: mean(values) if values else None for c, values in columns.items()},
            {c: stdev(values) if len(values) > 1 else None for c, values in columns.items()},
            len(runs),
        )


def task(table_number: int, line: Published) -> Task | None:
    """What would be run for a published row; nothing for a method that is not of this repository."""
    if line.method not in METHODS:
        return None
    name, _, imbalance = line.data.partition("@")
    changes = dict(METHODS[line.method])
    if imbalance and imbalance != "100":
        changes["data.imbalance"] = int(imbalance)
    if table_number == 5:
        changes["model.tower"] = "ViT-B-16"
    return Task(PRESETS[name], changes, line.method == "zero-shot")


def tasks() -> list[Task]:
    """Every different task of the five tables."""
    found = {t.command: t for n, (_, rows) in TITLES.items() for line in rows if (t := task(n, line))}
    return list(found.values())


def paper_page(ours: Mapping[str, Ours]) -> Report:
    """The page.

    Args:
        ours: command of a task -> our runs of it; absent where nothing was run.
    """
    parts: list[Part] = []
    tables: dict[str, Any] = {}
    for n, (title, rows) in TITLES.items():
        make = _by_imbalance if n == 2 else _by_group
        markup, lines = make(n, rows, ours)
        tables[f"table-{n}"] = lines
        parts += part(f"Table {n}", f"Table {n}: {title}", markup)
    counts = {"filled": sum(t.command in ours for t in tasks()), "tasks": len(tasks())}
    return Report(document("paper.html", "The paper's tables", parts, counts), (), tables)


def _value(value: float | None, deviation: float | None = None) -> Cell:
    if value is None:
        return cell("")
    return cell(number(value) if deviation is None else with_note(number(value), f"± {deviation:.1f}"))


def _command(of: Task, folded: bool = False) -> Cell:
    """The command that fills a row; folded into a word where there is no room."""
    return cell(macro(PIECES, "command", of.command, folded), kind="" if folded else "text")


def _by_group(n: int, rows: Sequence[Published], ours: Mapping[str, Ours]) -> tuple[str, Any]:
    shown: list[Row] = []
    lines: list[list[Any]] = []
    for line in rows:
        todo = task(n, line)
        mine = ours.get(todo.command) if todo else None
        theirs = [_value(line.scores[c]) for c in COLUMNS]
        shown.append(Row(published(line.method), [*theirs, cell(line.weights, kind="text")]))
        if todo and mine:
            cells = [_value(mine.scores[c], mine.deviation[c]) for c in COLUMNS]
            name = f"{line.method}, ours, {mine.seeds} seed{'s' * (mine.seeds > 1)}"
            shown.append(Row(name, [*cells, _command(todo)], "ours"))
        elif todo:
            shown.append(Row("ours", [*(cell("") for _ in COLUMNS), _command(todo)]))
        values = [mine.scores[c] for c in COLUMNS] if mine else [None] * len(COLUMNS)
        of_published = [line.method, line.weights, *(line.scores[c] for c in COLUMNS)]
        lines.append([*of_published, *values, mine.seeds if mine else 0, todo.command if todo else ""])
    both = [f"{whose} {c}" for whose in ("published", "ours") for c in COLUMNS]
    columns = ["method", "weights", *both, "seeds", "command"]
    caption = f"Top-1 accuracy in percent. Table {n}."
    head = ("method", *COLUMNS, "weights, or the command")
    return table(caption, head, shown, words=(5,)), (columns, lines)


def _by_imbalance(n: int, rows: Sequence[Published], ours: Mapping[str, Ours]) -> tuple[str, Any]:
    by_method: dict[str, list[Published]] = {}
    for line in rows:
        by_method.setdefault(line.method, []).append(line)
    shown: list[Row] = []
    lines: list[list[Any]] = []
    for name, of_method in by_method.items():
        shown.append(Row(published(name), [_value(line.all) for line in of_method]))
        todo = [task(n, line) for line in of_method]
        mine = [ours.get(one.command) if one else None for one in todo]
        cells = [
            _value(of.scores["all"], of.deviation["all"]) if of else _command(one, folded=True)
            for one, of in zip(todo, mine, strict=True)
            if one
        ]
        if cells:
            shown.append(Row("ours", cells, "ours" if any(mine) else ""))
        for line, one, of in zip(of_method, todo, mine, strict=True):
            score, seeds = (of.scores["all"], of.seeds) if of else (None, 0)
            lines.append([name, line.weights, line.data, line.all, score, seeds, one.command if one else ""])
    columns = ["method", "weights", "data@imbalance", "published all", "ours all", "seeds", "command"]
    head = ("method", *TABLE_2_DATA)
    return table(f"Top-1 accuracy of all test images in percent. Table {n}.", head, shown), (columns, lines)
