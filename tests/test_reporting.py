"""The report of real runs: a tiny pipeline run and its baseline, MLflow on SQLite, every command of `lfm report`."""

import csv
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from mlflow import MlflowClient

from lfm.report.run_values import FILES
from lfm.storage.artifact import verify
from tests.browser import check
from tests.reader import Reader
from tests.warm import lfm

pytestmark = pytest.mark.slow
SMALL = ["data.max_per_class=60", "data.imbalance=10", "stage1.epochs=2", "stage2.epochs=1", "shots.many=30"]
COLUMNS = ("many", "medium", "few", "all")


class Ran(NamedTuple):
    """What the two runs left behind."""

    home: Path
    client: MlflowClient
    ce: str
    lfm: str

    def report(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*lfm(), "report", *arguments, "--home", str(self.home)], capture_output=True, text=True, timeout=200
        )

    def metrics(self, run: str) -> dict[str, dict[str, float]]:
        return dict(json.loads(Path(self.client.download_artifacts(run, "metrics.json")).read_text()))


@pytest.fixture(scope="module")
def ran(fashion_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    home = tmp_path_factory.mktemp("home")
    (home / "downloads").mkdir()
    shutil.copytree(fashion_folder, home / "downloads" / "fashion-mnist")
    sets = [part for change in SMALL for part in ("--set", change)]
    done = subprocess.run(
        [*lfm(), "run", "fashion-mnist-lt", "--baseline", "--home", str(home), *sets],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fashion-mnist-lt").experiment_id
    found = {run.info.run_name: run.info.run_id for run in client.search_runs([experiment])}
    return Ran(home, client, found["ce, seed 0"], found["lfm + ce, seed 0"])


@pytest.fixture(scope="module")
def rebuilt(ran: Ran, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    done = ran.report("latest", "--out", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert ran.lfm in done.stdout and str(folder / "report.html") in done.stdout
    return folder


def shown(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"


def test_a_run_keeps_what_a_report_is_made_from_in_mlflow_and_in_the_artifact(ran: Ran) -> None:
    for run in (ran.ce, ran.lfm):
        assert {*FILES, "report.html"} <= {item.path for item in ran.client.list_artifacts(run)}
        label_N, predicted_N, confidence_N, untrained_N = (
            np.load(ran.client.download_artifacts(run, name)) for name in FILES[2:]
        )
        kept: dict[str, Any] = ran.metrics(run)
        assert (predicted_N.dtype, confidence_N.dtype, len(label_N)) == (np.int32, np.float32, 10_000)
        for scores, answers in ((kept["test"], predicted_N), (kept["untrained"], untrained_N)):
            table = np.zeros((10, 10), int)
            np.add.at(table, (label_N, answers), 1)
            assert table.tolist() == scores["confusion"], "in the test set's order, the same answers that were counted"
        assert 0.1 <= confidence_N.min() <= confidence_N.max() <= 1
    stored = [path for path in (ran.home / "store" / "metrics").iterdir() if path.is_dir()]
    assert len(stored) == 2
    for folder in stored:
        assert set(FILES) <= set(verify(folder)["files"]) and not (folder / "report.html").exists()
    pages = list((ran.home / "pipelines").rglob("metrics/report.html"))
    assert len(pages) == 2, "the page lies in each run's own folder"


def test_every_score_on_the_page_is_the_metrics(ran: Ran, rebuilt: Path) -> None:
    kept, base = ran.metrics(ran.lfm), ran.metrics(ran.ce)
    tables = Reader((rebuilt / "report.html").read_text()).tables
    rows = {row[0]: row[1:5] for row in tables[0]}
    assert rows["lfm + ce"] == [shown(kept["test"][c]) for c in COLUMNS]
    assert rows["untrained"] == [shown(kept["untrained"][c]) for c in COLUMNS]
    assert rows["ce"] == [shown(base["test"][c]) for c in COLUMNS]
    for name, of in (("lfm + ce", kept), ("ce", base)):
        adjusted = f"{name}, adjusted (strength {of['adjusted']['strength']:g})"
        assert rows[adjusted] == [shown(of["adjusted"][c]) for c in COLUMNS]
    assert list(rows)[1:3] == ["lfm + ce", f"lfm + ce, adjusted (strength {kept['adjusted']['strength']:g})"]
    for row, name, score in zip(tables[-1][1:], kept["test"]["classes"], kept["test"]["per_class"], strict=True):  # type: ignore[call-overload]
        assert (row[0], row[5]) == (name, shown(score))
    in_mlflow = ran.client.get_run(ran.lfm).data.metrics
    assert [in_mlflow.get(f"test/{c}") for c in COLUMNS] == [kept["test"][c] for c in COLUMNS]


def test_the_page_made_in_the_pipeline_is_the_page_made_again(ran: Ran, rebuilt: Path) -> None:
    first = Path(ran.client.download_artifacts(ran.lfm, "report.html")).read_text()
    assert first == (rebuilt / "report.html").read_text()
    (html,) = [
        path for path in (ran.home / "pipelines").rglob("report") if path.is_file() and path.read_text() == first
    ]
    assert html.parent.name.startswith("evaluate"), "KFP's HTML output"


def test_the_baselines_answers_margins_and_points_stand_beside_ours(rebuilt: Path) -> None:
    rows = (rebuilt / "tables" / "boundary.csv").read_text().splitlines()[1:]
    assert {row.split(",")[2] for row in rows} == {"untrained", "ce", "lfm + ce"}
    points = (rebuilt / "tables" / "tsne.csv").read_text().splitlines()[1:]
    assert {row.split(",")[0] for row in points} == {"untrained", "ce", "lfm + ce"}
    loss = [row.split(",") for row in (rebuilt / "tables" / "curves.csv").read_text().splitlines()[1:]]
    assert [row[0] for row in loss if row[1] == "loss"] == ["1", "1", "2"]


def test_the_page_of_a_real_run_in_a_browser(rebuilt: Path) -> None:
    check(rebuilt / "report.html", "run", figures=len(list((rebuilt / "figures").glob("*.svg"))))


def test_two_runs_are_compared_image_by_image(ran: Ran, tmp_path: Path) -> None:
    done = ran.report("--compare", ran.ce[:8], "lfm + ce, seed 0", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    ours, base = ran.metrics(ran.lfm)["test"], ran.metrics(ran.ce)["test"]
    for column in COLUMNS:
        if ours[column] is not None:
            (value,) = re.findall(rf" {column} +([+-][\d.]+)  \(.*, paired\)", done.stdout)
            assert float(value) == pytest.approx(ours[column] - base[column], abs=0.051)
    with (tmp_path / "tables" / "compared.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    adjusted = [ran.metrics(run)["adjusted"] for run in (ran.ce, ran.lfm)]
    assert len(rows) == 4 and [row[0].partition(", adjusted ")[2] for row in rows[1::2]] == [
        f"(strength {one['strength']:g})" for one in adjusted
    ]
    assert [float(row[4]) for row in rows[1::2]] == pytest.approx([one["all"] for one in adjusted], abs=0.01)
    check(tmp_path / "report.html", "compare", figures=2)


def test_the_papers_tables_without_any_of_their_runs(ran: Ran, tmp_path: Path) -> None:
    done = ran.report("paper", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {f"table-{n}.csv" for n in range(1, 6)}
    assert "lfm run cifar100-lt --set loss.name=mms" in (tmp_path / "report.html").read_text()
    check(tmp_path / "report.html", "paper", figures=0)


def test_mistakes_are_one_line(ran: Ran, tmp_path: Path) -> None:
    for arguments, told in (
        (["nothing-like-it"], "no evaluated run 'nothing-like-it'"),
        ([ran.ce, ran.lfm], "compare them with the first by lfm compare"),
        (["--compare", ran.ce, ran.ce[:8]], "two or more different runs"),
    ):
        done = ran.report(*arguments)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and told in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1
    empty = subprocess.run(
        [*lfm(), "report", "latest"], capture_output=True, text=True, env={**os.environ, "LFM_HOME": str(tmp_path)}
    )
    assert empty.returncode == 2 and "no evaluated runs yet" in empty.stderr
