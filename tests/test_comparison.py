"""Scores side by side: rows beside sums by hand, CSV that reads back, figures that are there."""

import csv
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from lfm.evaluation.comparison import best_of, plain_cell, rows_of, same_images, to_csv
from lfm.report.draw import write_csv
from lfm.report.sweep_page import sweep_figure, sweep_page, write_figure
from tests.reader import Reader

VARIANTS = [{"label": f"alpha {a}", "value": a} for a in (1.0, 0.5, 1.0)]
SCORES = [
    {"many": 90.0, "medium": 50.0, "few": None, "all": 70.0},
    {"many": 80.0, "medium": 60.0, "few": None, "all": 66.0},
    {"many": 92.0, "medium": 54.0, "few": None, "all": 71.0},
]


def test_seeds_become_a_mean_and_a_deviation() -> None:
    first, second = rows_of(VARIANTS, SCORES)
    assert (first["label"], first["value"], first["seeds"]) == ("alpha 1.0", 1.0, 2)
    assert first["all"] == 70.5 and first["all_std"] == pytest.approx((2 * 0.25) ** 0.5)
    assert first["medium"] == 52.0 and first["medium_std"] == pytest.approx(8**0.5)
    assert second["all"] == 66.0 and second["all_std"] is None and second["seeds"] == 1
    assert first["few"] is None and first["few_std"] is None, "absent, never 0"


def test_a_tie_has_no_best_and_other_test_images_have_none() -> None:
    rows = rows_of(VARIANTS, SCORES)
    assert best_of(rows, True) == "best of all: alpha 1.0, 70.5"
    tied = [*rows, {**rows[0], "label": "alpha 2.0"}]
    assert best_of(tied, True) == "none is the best of all: alpha 1.0 and alpha 2.0 tie at 70.5"
    assert "different test images" in best_of(rows, False)
    two_seeds = [{"label": label} for label in ("a", "b", "a", "b")]
    assert same_images(two_seeds, ["seed 0", "seed 0", "seed 1", "seed 1"]), "each seed has its own for all"
    assert not same_images(two_seeds, ["seed 0", "seed 0", "seed 1", "seed 2"])


def test_the_csv_reads_back() -> None:
    rows = rows_of(VARIANTS, SCORES)
    back = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert [row["label"] for row in back] == ["alpha 1.0", "alpha 0.5"]
    assert float(back[0]["all"]) == 70.5 and back[0]["few"] == "" and back[1]["all_std"] == ""


@pytest.mark.parametrize("values", [True, False])
def test_figure_and_page_are_whole(values: bool, tmp_path: Path) -> None:
    variants = [{**v, "label": f"<b>{v['label']} & more"} for v in VARIANTS]
    rows = rows_of(variants if values else [{"label": v["label"]} for v in variants], SCORES)
    piece = sweep_figure("A <title>", rows, "alpha")
    svg, png = write_figure(piece, tmp_path)
    assert svg.read_text().count("<svg") == 1
    with Image.open(png) as image:
        assert image.width > 400 and len(image.convert("RGB").getcolors(1 << 20) or []) > 20
    html = sweep_page("A <title>", rows, piece)
    reader = Reader(html)
    assert html.count("<svg") == 1 and "<td>70.5 ± 0.7</td>" in html
    assert reader.texts["h1"] == "A <title>" and "b" not in {tag for tag, _ in reader.tags}
    assert reader.tables[0] == [
        ["configuration", "many", "medium", "few", "all", "seeds"],
        ["<b>alpha 1.0 & more", "91.0 ± 1.4", "52.0 ± 2.8", "–", "70.5 ± 0.7", "2"],
        ["<b>alpha 0.5 & more", "80.0", "60.0", "–", "66.0", "1"],
    ]
    assert not re.findall(r'(?:src|href)="https?:', html), "no external requests"


@pytest.mark.parametrize(
    "name", ["=HYPERLINK(1)", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", " =1", "\r=1", "＝1+1"]
)
def test_a_name_that_a_spreadsheet_would_run_is_text(name: str, tmp_path: Path) -> None:
    rows = rows_of([{"label": name, "value": 1.0}], [{"many": -1.5, "medium": None, "few": None, "all": 2.0}])
    found = list(csv.reader(io.StringIO(to_csv(rows), newline="")))[1]
    name = name.replace("\r", " ")
    assert found[0] == f"'{name}" and "-1.5" in found
    write_csv(tmp_path / "t.csv", ["class", name], [[name, -3.25], ["fox", "-3.25"]])
    with (tmp_path / "t.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["class", f"'{name}"], [f"'{name}", "-3.25"], ["fox", "-3.25"]]
    for plain in ("fox", "a=b", "T-shirt", "-1.5", "+2e-3", "3 - 1", ""):
        assert plain_cell(plain) == plain
