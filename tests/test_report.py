"""Tables and the page, read back: every number is that of the metrics, every name arrives as it was."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lfm.config import ShotsConfig
from lfm.evaluate import metrics
from lfm.report import histogram, page, percent, picture, table

NASTY = ["<script>alert('x')</script>", 'a "quoted" & <b>bold</b> name', "T-shirt/top", "café ☕", "plain"]
COUNTS = [900, 300, 150, 101, 5]


def scored(seed: int, classes: list[str] = NASTY, counts: list[int] = COUNTS) -> dict[str, Any]:
    """Metrics of a random confusion; nobody is medium."""
    size = (len(classes), len(classes))
    confusion_CC = torch.randint(0, 40, size, generator=torch.Generator().manual_seed(seed))
    return metrics(confusion_CC, torch.tensor(counts), ShotsConfig()) | {"classes": classes, "counts": counts}


def shown(value: float | None) -> str:
    return "-" if value is None else str(round(value, 1))


class Reader(HTMLParser):
    """What a browser would see: tables as rows of cell texts, all other text, all tags with their attributes."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tables: list[list[list[str]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.open: list[str] = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "tags are not nested"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        else:
            self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + data


# --- plain text ---


def test_the_table_is_aligned_and_has_the_metrics_numbers() -> None:
    methods = {"untrained": scored(0), "ce": scored(1), "a method with a rather long name": scored(2)}
    head, *rows = table(methods).splitlines()
    assert head.split() == ["many", "medium", "few", "all"]
    assert len({len(line) for line in (head, *rows)}) == 1
    ends = [match.end() for match in re.finditer(r"\S+", head)]
    for row, (name, found) in zip(rows, methods.items(), strict=True):
        assert row.startswith(name + "  ")
        cells = list(re.finditer(r"\S+", row[len(name) :]))
        assert [cell.group() for cell in cells] == [shown(found[c]) for c in ("many", "medium", "few", "all")]
        assert [cell.end() + len(name) for cell in cells] == ends, "columns end under their headings"


def test_a_group_without_classes_is_a_dash_and_zero_is_a_number() -> None:
    found = {"many": 100.0, "medium": None, "few": 0.0, "all": 33.333}
    assert table({"ce": found}).splitlines()[1].split() == ["ce", "100.0", "-", "0.0", "33.3"]
    assert percent(None) == "-" and percent(0) == "0.0" and percent(79.96) == "80.0"


def test_the_histogram_has_a_row_a_class_with_bars_in_proportion() -> None:
    bars = [0.1, 0.05, 0.025, 0.0001]
    lines = histogram(["a", "bb", "a long name", "d"], {"n": [1, 22, 333, 4], "p": ["x", "y", "z", "w"]}, bars)
    head, *rows = lines.splitlines()
    assert head.split() == ["n", "p"]
    assert [row.count("█") for row in rows] == [24, 12, 6, 1], "the smallest is still visible"
    assert [row.rstrip("█ ").split()[-2:] for row in rows] == [["1", "x"], ["22", "y"], ["333", "z"], ["4", "w"]]
    assert [row.startswith(name) for row, name in zip(rows, ["a", "bb", "a long name", "d"], strict=True)] == [True] * 4
    assert len({row.index("█") for row in rows}) == 1
    assert {re.search(r"\S+\s+\S+\s+█", row).end(0) for row in rows if "█" in row} == {rows[0].index("█") + 1}  # type: ignore[union-attr]


@pytest.mark.parametrize(("classes", "most"), [(21, 20), (1000, 20), (7, 4), (7, 5), (4, 4)])
def test_of_many_classes_the_first_and_the_last_are_shown(classes: int, most: int) -> None:
    names = [f"class-{k}" for k in range(classes)]
    _, *rows = histogram(names, {"k": list(range(classes))}, [1.0] * classes, most).splitlines()
    if classes <= most:
        assert [row.split()[0] for row in rows] == names
        return
    half = most // 2
    assert [row.split()[0] for row in rows if row.startswith("class")] == names[:half] + names[-half:]
    assert rows[half].split()[:2] == ["...", str(classes - 2 * half)] and len(rows) == 2 * half + 1
    assert [row.split()[1] for row in rows if row.startswith("class")][-1] == str(classes - 1)


# --- the page ---

PROVENANCE = {"data": "fashion-mnist, imbalance 100", "shots": "many > 100, few < 20", "<seed>": "0 & 1"}


def read_page(methods: dict[str, dict[str, Any]]) -> tuple[str, Reader]:
    content = page("lfm + ce <on> data", methods, PROVENANCE)
    return content, Reader(content)


def test_the_page_shows_the_metrics_of_every_method_and_each_class_of_the_last() -> None:
    methods = {"untrained": scored(0), "lfm + ce <i>": scored(1)}
    _, reader = read_page(methods)
    shots, classes = reader.tables
    assert shots[0] == ["", "many", "medium", "few", "all"]
    assert shots[1:] == [
        [name, *(shown(found[c]) for c in ("many", "medium", "few", "all"))] for name, found in methods.items()
    ]
    assert shots[1][2] == shots[2][2] == "-"
    last = methods["lfm + ce <i>"]
    assert [row[:3] for row in classes[1:]] == [
        [name, str(count), shown(score)] for name, count, score in zip(NASTY, COUNTS, last["per_class"], strict=True)
    ]
    widths = [attributes["style"] for tag, attributes in reader.tags if tag == "div"]
    assert widths == [f"width:{shown(score)}%" for score in last["per_class"]]


def test_names_are_text_and_never_markup() -> None:
    content, reader = read_page({"ce": scored(3)})
    assert [row[0] for row in reader.tables[1][1:]] == NASTY
    assert "<script" not in content and "<b>" not in content and "<i>" not in content
    assert {tag for tag, _ in reader.tags}.isdisjoint({"script", "b", "i", "on", "seed"})
    assert reader.texts["h1"] == reader.texts["title"] == "lfm + ce <on> data"
    footer = reader.texts["footer"]
    for name, fact in PROVENANCE.items():
        assert f"{name}: {fact}" in footer


def test_the_page_asks_nothing_of_the_network() -> None:
    content, reader = read_page({"ce": scored(3)})
    assert not re.search(r"https?:|//|url\(|@import", content.replace("<!doctype", "")), "no address of any kind"
    for tag, attributes in reader.tags:
        assert tag not in ("script", "link", "img", "iframe") and not attributes.keys() & {"src", "href", "srcset"}


def test_a_class_without_test_images_has_a_dash_and_no_bar() -> None:
    found = metrics(torch.tensor([[3, 1], [0, 0]]), torch.tensor([500, 5]), ShotsConfig())
    _, reader = read_page({"ce": found | {"classes": ["a", "b"], "counts": [500, 5]}})
    assert [row[:3] for row in reader.tables[1][1:]] == [["a", "500", "75.0"], ["b", "5", "-"]]
    assert [attributes["style"] for tag, attributes in reader.tags if tag == "div"] == ["width:75.0%", "width:0.0%"]


# --- the picture ---


@pytest.mark.parametrize("classes", [3, 100])
def test_the_picture_is_an_image_file(classes: int, tmp_path: Path) -> None:
    from matplotlib.image import imread

    falling = [1 / (k + 1) for k in range(classes)]
    found = {
        "classes": [f"class {k}" for k in range(classes)], "gamma": 100.0, "gamma_effective": 4.7, "alpha": 0.5,
        "prior": falling, "seen": falling, "own_label_mass": [1 - v / 2 for v in falling],
    }  # fmt: skip
    path = tmp_path / "picture.png"
    picture(path, "a title", found)
    pixels = imread(path)
    assert pixels.ndim == 3 and min(pixels.shape[:2]) > 300
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 10, "something is drawn"
