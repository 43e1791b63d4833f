"""The published table: its numbers, its weights, and the paper's tables filled by runs."""

import pytest

from lfm.config.presets import load
from lfm.config.schema import RunConfig
from lfm.report.paper_tables import Ours, paper_page, tasks
from lfm.report.published import TABLE_1, TABLE_2, TABLE_3, TABLE_4, TABLE_5, for_data
from tests.reader import Reader


def data(name: str, imbalance: float, profile: str = "exponential") -> dict[str, object]:
    return {"name": name, "imbalance": str(imbalance), "profile": profile}


def test_rows_that_the_presets_also_state_are_the_same() -> None:
    (line,) = [row for row in TABLE_1 if row.method == "LFM + CE"]
    assert (line.many, line.medium, line.few, line.all) == (81.2, 79.6, 68.6, 77.3)
    by_data = {row.data: row.all for row in TABLE_2 if row.method == "LFM + MMS"}
    assert by_data == {
        "cifar10@100": 90.0, "cifar10@50": 91.0, "cifar10@10": 97.0,
        "cifar100@100": 79.4, "cifar100@50": 81.1, "cifar100@10": 85.7,
    }  # fmt: skip
    assert [len(rows) for rows in (TABLE_1, TABLE_2, TABLE_3, TABLE_4, TABLE_5)] == [8, 15 * 6, 11, 9, 3]
    assert {row.all for row in TABLE_3 if "LFM" in row.method} == {70.6, 71.7}
    assert [row.few for row in TABLE_5] == [55.1, 55.7, 72.8]


def test_table_2_repeats_what_table_1_says_of_all() -> None:
    in_2 = {row.method: row.all for row in TABLE_2 if row.data == "cifar100@100" and "CLIP" in row.weights}
    assert in_2 == {row.method: row.all for row in TABLE_1 if row.method != "zero-shot"}


def test_every_row_of_a_data_set_has_its_weights_and_none_twice() -> None:
    rows = for_data(data("cifar100", 100))
    assert len({(row.method, row.weights, row.source) for row in rows}) == len(rows)
    assert {"LFM + CE", "LIFT", "BBN", "Mixup"} <= {row.method for row in rows} and all(row.weights for row in rows)
    assert sum(row.method == "LFM + CE" for row in rows) == 1, "Table 2 says no more of it than Table 1"
    assert [row.all for row in for_data(data("cifar100", 50)) if row.method.startswith("LIFT")] == [82.0, 83.1]
    assert {row.source for row in for_data(data("imagenet-lt", 100, "as-is"))} >= {"Table 3", "LIFT, ICML 2024"}
    assert not for_data(data("fashion-mnist", 100)) and not for_data(data("cifar100", 100, "step"))


def test_each_command_of_the_papers_tables_is_a_run_of_the_paper() -> None:
    found = {task.command: load(task.preset, dict(task.overrides)) for task in tasks()}
    assert all(isinstance(config, RunConfig) for config in found.values())
    assert found["lfm run cifar100-lt --set mixup.name=none --set loss.name=balce"].method == "balce"
    fifty = found["lfm run cifar10-lt --set loss.name=mms --set data.imbalance=50"]
    assert (fifty.method, fifty.data.imbalance) == ("lfm + mms", 50)
    assert found["lfm run cifar100-lt --set mixup.name=remix --set model.tower=ViT-B-16"].model.tower == "ViT-B-16"
    assert sum(command.startswith("lfm run imagenet-lt") for command in found) == 5


def test_ours_stand_beside_published_and_empty_cells_have_their_command() -> None:
    command = "lfm run cifar100-lt"
    seeds: list[dict[str, float | None]] = [
        {"many": 80.0, "medium": 70.0, "few": None, "all": 76.0},
        {"many": 82.0, "medium": 72.0, "few": None, "all": 77.0}
    ]  # fmt: skip
    report = paper_page({command: Ours.of(seeds)})
    reader = Reader(report.html)
    first = reader.tables[0]
    at = next(k for k, row in enumerate(first) if row[0].startswith("LFM + CE"))
    assert first[at][:5] == ["LFM + CE published", "81.2", "79.6", "68.6", "77.3"]
    assert first[at + 1][:5] == ["LFM + CE, ours, 2 seeds", "81.0", "71.0", "", "76.5"]
    assert first[2][:5] == ["ours", "", "", "", ""]
    assert first[2][5] == "lfm run cifar100-lt --set stage1.epochs=0 --set stage2.epochs=0"
    columns, rows = report.tables["table-1"]
    line = dict(zip(columns, next(row for row in rows if row[0] == "LFM + CE"), strict=True))
    assert (line["ours all"], line["published all"], line["seeds"], line["ours few"]) == (76.5, 77.3, 2, None)
    in_2 = next(row for row in report.tables["table-2"][1] if row[0] == "LFM + CE" and row[2] == "cifar100@100")
    assert in_2[4] == 76.5
    assert f"1 of {len(tasks())} rows" in report.html


@pytest.mark.parametrize("preset", ["imagenet-lt", "places-lt"])
def test_data_that_a_user_brings_have_places_in_the_command(preset: str) -> None:
    assert all("data.source=LISTS" in task.command for task in tasks() if task.preset == preset)
