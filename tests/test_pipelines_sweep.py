"""A sweep of six configurations under kfp.local, two at a time."""

import csv
import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from lfm.cli.main import app
from lfm.config.presets import load
from lfm.config.sweeps import variants_of
from lfm.pipelines.local_run import run_sweep
from tests.small_run import PRESET, SMALL


@pytest.mark.slow
@pytest.mark.usefixtures("tables")
def test_six_configurations_share_their_data_and_end_in_a_table_and_a_figure(
    home: Path, small_fashion: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = {**SMALL, "data.source": str(small_fashion)}
    variants = variants_of("alpha", [0.0, 0.5, 1.0], seeds=2)
    result = run_sweep(load(PRESET, overrides), variants, parallelism=2)
    shown = capsys.readouterr().out
    assert len([p for p in (home / "store" / "dataset").iterdir() if p.is_dir()]) == 2, "one for each seed"
    assert len([p for p in (home / "store" / "text").iterdir() if p.is_dir()]) == 1
    assert shown.count("data: done") == 2 and shown.count("text embeddings: done") == 1
    rows = json.loads((result.output("table") / "table.json").read_text())
    assert [(row["label"], row["value"], row["seeds"]) for row in rows] == [
        ("alpha 0", 0.0, 2), ("alpha 0.5", 0.5, 2), ("alpha 1", 1.0, 2)
    ]  # fmt: skip
    with (result.output("table") / "table.csv").open() as file:
        assert [float(row["all"]) for row in csv.DictReader(file)] == pytest.approx(
            [row["all"] for row in rows], abs=1e-4
        )
    assert "<svg" in (result.output("figure") / "figure.svg").read_text()
    assert (result.output("figure") / "figure.png").stat().st_size > 5000
    assert "alpha 0.5" in result.output("report").read_text()

    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name(PRESET).experiment_id], "tags.`lfm.pipeline_run` LIKE '%'")
    by_name = {run.info.run_name: run for run in runs}
    assert by_name.keys() == {"sweep of 6", *(variant["name"] for variant in variants)}
    assert {run.info.status for run in runs} == {"FINISHED"}
    parent = by_name.pop("sweep of 6")
    for variant in variants:
        run = by_name[variant["name"]]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert float(run.data.params["stage1.alpha"]) == variant["overrides"]["stage1.alpha"]
    means = [sum(r.data.metrics["test/all"] for n, r in by_name.items() if n.startswith(f"{row['label']},")) / 2
             for row in rows]  # fmt: skip
    assert [row["all"] for row in rows] == pytest.approx(means)
    kept = {item.path for item in client.list_artifacts(parent.info.run_id, "sweep")}
    assert kept == {f"sweep/{name}" for name in ("figure.svg", "figure.png", "table.csv", "table.json", "report.html")}


def test_a_bad_value_is_found_before_any_training(home: Path) -> None:
    done = CliRunner().invoke(app, ["sweep", PRESET, "--grid", "tau", "--values", "1,-1"])
    assert "tau -1: mixup.tau = -1" in str(done.exception) and not (home / "store").exists()
