"""Plain tables and the picture of the data, read back: every number is that of the metrics."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lfm.config.schema import ShotsConfig
from lfm.evaluation.metrics import metrics
from lfm.report.data_page import picture
from lfm.report.tables import histogram, percent, table

NASTY = ["<script>alert('x')</script>", 'a "quoted" & <b>bold</b> name', "T-shirt/top", "café ☕", "plain"]
COUNTS = [900, 300, 150, 101, 5]


def scored(seed: int, classes: list[str] = NASTY, counts: list[int] = COUNTS) -> dict[str, Any]:
    """Metrics of a random confusion; nobody is medium."""
    size = (len(classes), len(classes))
    confusion_CC = torch.randint(0, 40, size, generator=torch.Generator().manual_seed(seed))
    return metrics(confusion_CC, torch.tensor(counts), ShotsConfig()) | {"classes": classes, "counts": counts}


def shown(value: float | None) -> str:
    return "-" if value is None else str(round(value, 1))


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


# --- the picture ---


@pytest.mark.slow
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
