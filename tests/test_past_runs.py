"""Past runs read back from a real MLflow store: which is meant, what differs, which fill the paper's tables."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lfm.cli.main import app
from lfm.config.overrides import flatten
from lfm.config.presets import load
from lfm.errors import InputError
from lfm.jobs.reports import _is_baseline, others, report_paper, sweeps
from lfm.report.published import TABLE_1
from lfm.tracking import past_runs
from lfm.tracking.client import connect
from tests.reader import Reader
from tests.test_report_page import drawn

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("tables")]

Logged = Callable[..., str]


@pytest.fixture
def logged(home: Path) -> Logged:
    """Logs a run as the pipeline does: the parent has parameters and scores, its evaluation the scores alone."""
    client = connect()
    experiments: dict[str, str] = {}
    clock = iter(range(1, 1000))

    def log(
        preset: str, score: float, status: str = "FINISHED", test: str = "a", train: str = "a", **changes: Any
    ) -> str:
        config = load(preset, {name.replace("__", "."): value for name, value in changes.items()})
        experiment = experiments.get(preset) or client.create_experiment(preset, str(home / "mlartifacts"))
        experiments[preset] = experiment
        began = next(clock)
        run_id = ""
        for name, tags in (("parent", {}), ("evaluate", {"mlflow.parentRunId": "the parent's"})):
            tags = {**tags, "lfm.method": config.method, "lfm.test_images": test, "lfm.train_images": train}
            run = client.create_run(experiment, began, tags, f"{config.method}, seed {config.seed}")
            if name == "parent":
                run_id = run.info.run_id
                for k, v in flatten(config).items():
                    client.log_param(run_id, k, v)
                client.log_param(run_id, "stage1.alpha_used", config.stage1.alpha)
            for prefix, offset in (("test", 0.0), ("untrained", -5.0)):
                for group, extra in (("many", 5.0), ("medium", 0.0), ("all", 1.0)):
                    client.log_metric(run.info.run_id, f"{prefix}/{group}", score + extra + offset)
            client.set_terminated(run.info.run_id, status)
        return run_id

    return log


def test_a_run_is_found_by_id_beginning_name_and_latest(logged: Logged) -> None:
    first = logged("fashion-mnist-lt", 60, mixup__name="none")
    second = logged("fashion-mnist-lt", 70)
    logged("fashion-mnist-lt", 80, "FAILED", seed=3)
    among = past_runs.evaluated()
    assert len(among) == 3, "the steps' own runs are left out"
    assert past_runs.find("latest", among).run_id == second, "the newest that finished"
    assert past_runs.find("ce, seed 0", among).run_id == past_runs.find(first[:9], among).run_id == first
    assert past_runs.find(second, among).scores() == {"many": 75.0, "medium": 70.0, "few": None, "all": 71.0}


def test_the_list_of_runs_tells_those_of_one_name_apart(logged: Logged) -> None:
    first = logged("fashion-mnist-lt", 60, test="aaaaaaaa0000")
    second = logged("fashion-mnist-lt", 61, "FAILED", test="bbbbbbbb0000", seed=1)
    other = logged("custom-small", 70)
    done = CliRunner().invoke(app, ["runs"])
    assert done.exit_code == 0, done.output
    head, *lines = done.output.splitlines()
    assert head.split() == ["run", "date", "method", "seed", "many", "medium", "few", "all", "data"]
    assert [line.split()[0] for line in lines] == [other[:12], second[:12], first[:12]], "the newest first"
    assert lines[2].split()[1:] == [
        "1970-01-01", "00:00", "lfm", "+", "ce", "0", "65.0", "60.0", "-", "61.0",
        "fashion-mnist-lt:", "fashion-mnist,", "test", "aaaaaaaa",
    ]  # fmt: skip
    assert "test bbbbbbbb (did not end well)" in lines[1] and lines[1].split()[6] == "1"
    only = CliRunner().invoke(app, ["runs", "custom-small"]).output.splitlines()
    assert [line.split()[0] for line in only[1:]] == [other[:12]]
    mistake = CliRunner().invoke(app, ["runs", "custom-smal"]).exception
    assert isinstance(mistake, InputError) and "did you mean custom-small" in str(mistake)


def test_a_run_that_is_not_there_or_meant_twice_is_refused(logged: Logged) -> None:
    with pytest.raises(InputError, match="no evaluated runs yet"):
        past_runs.find("latest", past_runs.evaluated())
    first, second = logged("fashion-mnist-lt", 60), logged("fashion-mnist-lt", 61)
    among = past_runs.evaluated()
    dated = rf"{second[:12]} \(lfm \+ ce, seed 0, 1970-01-01 00:00\)"
    with pytest.raises(InputError, match=rf"2 runs are called 'lfm \+ ce, seed 0'; give an id of {dated}"):
        past_runs.find("lfm + ce, seed 0", among)
    for unknown in ("zzzz", first[:3], ""):
        with pytest.raises(InputError, match="no evaluated run"):
            past_runs.find(unknown, among)
    with pytest.raises(InputError, match=r"has no metrics\.json.*older version; run it again"):
        past_runs.download(among[0], ("metrics.json",), Path("never"))


def test_sweeps_are_the_runs_that_differ_in_one_field_alone(logged: Logged) -> None:
    ours = logged("fashion-mnist-lt", 70)  # alpha .5, tau .25
    for alpha, score in ((0.0, 60), (1.0, 65)):
        logged("fashion-mnist-lt", score, stage1__alpha=alpha, stage2__alpha=alpha)
    logged("fashion-mnist-lt", 10, stage1__alpha=2.0, stage2__alpha=2.0, loss__name="mms")
    logged("fashion-mnist-lt", 11, stage1__alpha=1.5, stage2__alpha=1.5, seed=1)
    logged("fashion-mnist-lt", 12, "FAILED", stage1__alpha=1.7, stage2__alpha=1.7)
    logged("fashion-mnist-lt", 66, mixup__tau=0.05, train__processes=2)
    among = past_runs.evaluated()
    alpha_, tau = sweeps(past_runs.find(ours, among), among)
    assert [(value, scores["all"]) for value, scores in alpha_.points] == [(0.0, 61.0), (0.5, 71.0), (1.0, 66.0)]
    assert [(value, scores["all"]) for value, scores in tau.points] == [(0.05, 67.0), (0.25, 71.0)]
    plain = logged("fashion-mnist-lt", 50, mixup__name="none")
    assert sweeps(past_runs.find(plain, past_runs.evaluated()), past_runs.evaluated()) == []


def test_the_runs_beside_one_are_those_on_the_same_data_once_each(logged: Logged) -> None:
    ours = logged("fashion-mnist-lt", 70)
    logged("fashion-mnist-lt", 50, mixup__name="none")
    newer = logged("fashion-mnist-lt", 51, mixup__name="none")
    logged("fashion-mnist-lt", 52, mixup__name="none", seed=1)
    logged("fashion-mnist-lt", 66, mixup__tau=0.05)
    logged("fashion-mnist-lt", 99, data__imbalance=10)
    logged("fashion-mnist-lt", 71)  # the same as ours
    among = past_runs.evaluated()
    found = others(past_runs.find(ours, among), among)
    assert [(other.name, other.seed, other.scores["medium"]) for other in found] == [
        ("lfm + ce · mixup.tau=0.05", "0", 66.0), ("ce", "0", 51.0), ("ce", "1", 52.0)
    ]  # fmt: skip
    assert found[1].run_id == newer


def test_runs_on_other_images_are_no_peers_whatever_their_configuration(logged: Logged) -> None:
    """After new images came the configuration is the same: only the hashes tell."""
    logged("fashion-mnist-lt", 50, mixup__name="none", train="before")
    logged("fashion-mnist-lt", 51, mixup__name="none", test="before")
    logged("fashion-mnist-lt", 52, mixup__name="none", test="")  # of an older version
    logged("fashion-mnist-lt", 60, stage1__alpha=0.0, stage2__alpha=0.0, test="before")
    logged("fashion-mnist-lt", 53, loss__name="mms", seed=1, train="of another seed")
    logged("fashion-mnist-lt", 54, loss__name="focal", seed=1, train="of another seed", test="before")
    ours = logged("fashion-mnist-lt", 70)
    among = past_runs.evaluated()
    past = past_runs.find(ours, among)
    assert [(other.name, other.scores["medium"]) for other in others(past, among)] == [("lfm + mms", 53.0)]
    assert not [run for run in among if _is_baseline(run, past)] and sweeps(past, among) == []
    logged("fashion-mnist-lt", 55, mixup__name="none")
    among = past_runs.evaluated()
    assert [run.scores()["medium"] for run in among if _is_baseline(run, past)] == [55.0]


def test_runs_of_several_seeds_make_a_mean_only_on_the_same_test_images(logged: Logged) -> None:
    logged("fashion-mnist-lt", 10, test="before", seed=1)
    for seed, score in ((0, 70), (2, 72)):
        logged("fashion-mnist-lt", score, seed=seed)
    found = past_runs.matching("fashion-mnist-lt", {}, past_runs.evaluated())
    assert sorted(run.scores()["medium"] or 0 for run in found) == [70.0, 72.0]


def test_the_papers_tables_are_filled_by_the_runs_there_are(logged: Logged) -> None:
    logged("cifar100-lt", 70, mixup__name="none", data__source="/somewhere", train__device="cpu")
    logged("cifar100-lt", 76)
    logged("cifar100-lt", 78, seed=1)
    logged("cifar100-lt", 10, mixup__tau=1.0)  # another method's setting fills nothing
    report = report_paper()
    _, rows = report.tables["table-1"]
    ours = {row[0]: row[6:11] for row in rows}
    assert ours["CE"] == [75.0, 70.0, None, 71.0, 1]
    assert ours["LFM + CE"] == [82.0, 77.0, None, 78.0, 2]
    assert (
        ours["zero-shot"][:2] == [pytest.approx(65 - 50, abs=70), pytest.approx(0, abs=70)]
        and ours["zero-shot"][4] == 2
    )
    assert ours["MMS"] == [None] * 4 + [0]
    assert [row[2:6] for row in rows] == [[r.many, r.medium, r.few, r.all] for r in TABLE_1]
    (line,) = [row for row in Reader(report.html).tables[0] if row[0] == "LFM + CE, ours, 2 seeds"]
    assert line[1:5] == ["82.0", "77.0", "", "78.0"]


def test_runs_of_one_name_are_told_apart_by_their_dates(logged: Logged, home: Path, tmp_path: Path) -> None:
    files = drawn(["a", "b", "c", "d"], tmp_path / "metrics", load("fashion-mnist-lt"), each=4)
    found = json.loads((files / "metrics.json").read_text())
    (files / "metrics.json").write_text(json.dumps(found | {"provenance": found["provenance"] | {"seed": 0}}))
    runs = [logged("fashion-mnist-lt", 60), logged("fashion-mnist-lt", 60), logged("fashion-mnist-lt", 60, seed=1)]
    for run in runs:
        connect().log_artifacts(run, str(files))
    with closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        database.execute("UPDATE runs SET start_time = ? WHERE run_uuid = ?", (86_400_000 * 365, runs[1]))
    done = CliRunner().invoke(app, ["compare", *runs, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, (done.output, done.exception)
    first, second, third = (line.partition(")")[0] + ")" for line in done.output.splitlines()[1:4])
    assert first.endswith(f", seed 0, 1970-01-01 00:00 ({runs[0][:8]})")
    assert second.endswith(f", seed 0, 1971-01-01 00:00 ({runs[1][:8]})")
    assert third.endswith(f", seed 0 ({runs[2][:8]})"), "its name is there once"
