"""How a pipeline run ends in MLflow, whatever KFP says: FINISHED, FAILED or KILLED, never RUNNING for ever."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from lfm.config.sweeps import Part
from lfm.errors import SIGTERM_EXIT, InputError, PassingError
from lfm.jobs.pipeline_run import finish
from lfm.jobs.step import Mistake, step
from lfm.tracking import pipeline_run, whole_sweep
from lfm.tracking.client import connect, every
from lfm.tracking.membership import ATTEMPT, PLUGIN_TAG, Membership
from tests import warm

pytestmark = pytest.mark.slow

KEY = "a1b2c3"


@pytest.fixture
def client(home: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """An SQLite file in which the pipeline run has begun."""
    home.mkdir()
    shutil.copyfile(empty_database, home / "mlflow.db")
    monkeypatch.setenv("LFM_PIPELINE_RUN", KEY)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    pipeline_run.begin_pipeline_run("nightly", "a run")
    return MlflowClient(f"sqlite:///{home / 'mlflow.db'}")


def statuses(client: MlflowClient) -> dict[str, str]:
    where = [experiment.experiment_id for experiment in client.search_experiments()]
    return {run.info.run_name: run.info.status for run in client.search_runs(where, order_by=["start_time ASC"])}


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("COMPLETE", "FINISHED"),
        ("CACHED", "FINISHED"),
        ("SUCCEEDED", "FINISHED"),
        ("FAILED", "FAILED"),
        ("CANCELED", "KILLED"),
        ("CANCELLED", "KILLED"),
    ],
)
def test_each_word_of_the_backend_has_its_end(client: MlflowClient, state: str, status: str) -> None:
    with pipeline_run.step_run("prepare data"):
        pass
    finish(state)
    assert statuses(client) == {"a run": status, "prepare data": "FINISHED"}


@pytest.mark.parametrize("state", ["RUNNING", "NEW", "UNKNOWN", "", "a word of a later KFP"])
def test_without_a_word_the_last_step_has_the_say(client: MlflowClient, state: str) -> None:
    """An unchanged retraining: the branch that was not taken leaves RUNNING."""
    with pipeline_run.step_run("data news"):
        pass
    pipeline_run.end_well()
    finish(state)
    assert statuses(client)["a run"] == "FINISHED"


def test_a_run_that_was_terminated_is_killed_and_its_open_step_too(client: MlflowClient) -> None:
    killed = pipeline_run.step_run("stage 1")  # its process said nothing of its end
    killed.__enter__()
    finish("RUNNING")
    assert statuses(client) == {"a run": "KILLED", "stage 1": "KILLED"}


def test_a_step_that_failed_and_was_not_tried_again_decides(client: MlflowClient) -> None:
    for attempt in ("first", "second"):
        with pytest.raises(RuntimeError), pipeline_run.step_run("stage 1"):
            raise RuntimeError(attempt)
    finish("RUNNING")
    assert statuses(client)["a run"] == "FAILED"


def test_a_failure_that_a_later_attempt_made_good_does_not_count(client: MlflowClient) -> None:
    with pytest.raises(RuntimeError), pipeline_run.step_run("stage 1"):
        raise RuntimeError
    time.sleep(0.01)
    with pipeline_run.step_run("stage 1"):
        pass
    finish("RUNNING")
    assert statuses(client)["a run"] == "KILLED", "ended from outside before its last step"


def test_a_run_that_is_retried_runs_again_and_its_last_step_closes_it(client: MlflowClient) -> None:
    """KFP runs the exit handler once: after Retry nobody calls `finish`."""
    with pytest.raises(RuntimeError), pipeline_run.step_run("stage 1"):
        raise RuntimeError
    finish("FAILED")
    assert statuses(client)["a run"] == "FAILED"
    with pipeline_run.step_run("stage 1"):
        assert statuses(client)["a run"] == "RUNNING"
    with pipeline_run.step_run("register"):
        pass
    pipeline_run.end_well()
    assert statuses(client)["a run"] == "FINISHED"


def test_a_retry_that_fails_or_is_terminated_closes_the_run_itself(client: MlflowClient) -> None:
    """Seen on KFP 2.17.0: a run that was terminated after its Retry stayed RUNNING in MLflow for good."""
    for error, status in ((RuntimeError(), "FAILED"), (SystemExit(143), "KILLED")):
        with pytest.raises(type(error)), pipeline_run.step_run("stage 1"):
            assert statuses(client)["a run"] == "RUNNING"
            raise error
        assert statuses(client)["a run"] == status


def test_variants_that_are_open_are_closed_with_their_steps(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = pipeline_run.step_run("stage 1")
    for name in ("ce", "lfm"):
        monkeypatch.setenv("LFM_PIPELINE_RUN", KEY)
        monkeypatch.setenv("LFM_PIPELINE_RUN", pipeline_run.begin_pipeline_run("nightly", name, variant=name))
        assert pipeline_run.in_variant()
        if name == "ce":
            pipeline_run.end_well()
        else:
            killed.__enter__()
    monkeypatch.setenv("LFM_PIPELINE_RUN", KEY)
    finish("RUNNING")
    assert statuses(client) == {"a run": "KILLED", "ce": "FINISHED", "lfm": "KILLED", "stage 1": "KILLED"}


def test_sigterm_closes_a_step_as_killed(client: MlflowClient, home: Path) -> None:
    process = subprocess.Popen([*warm.program("waiting_step.py")], env=dict(os.environ), stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert statuses(client) == {"a run": "KILLED", "stage 1": "KILLED"}
    finish("RUNNING")
    assert statuses(client)["a run"] == "KILLED"


def test_sigterm_closes_a_step_as_killed_though_nobody_reads_its_output_any_more(client: MlflowClient) -> None:
    with pytest.raises(BrokenPipeError), pipeline_run.step_run("stage 1"):
        try:
            raise SystemExit(SIGTERM_EXIT)
        finally:
            raise BrokenPipeError
    finish("RUNNING")
    assert statuses(client) == {"a run": "KILLED", "stage 1": "KILLED"}


def test_a_step_whose_launcher_is_gone_is_killed_while_it_trains_on(client: MlflowClient, home: Path) -> None:
    """Seen on KFP 2.17.0: the launcher dies of SIGTERM at once, a stage notes it and finishes its step."""
    process = subprocess.Popen(
        [*warm.program("talking_step.py")], env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout and process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    process.stdout.close()
    assert process.wait(200) != 0
    finish("RUNNING")
    assert statuses(client) == {"a run": "KILLED", "stage 1": "KILLED"}


def test_a_leftover_run_of_other_work_is_left_alone(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = client.create_run(client.create_experiment("theirs"), run_name="theirs")
    client.set_terminated(theirs.info.run_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", theirs.info.run_id)
    with pipeline_run.step_run("prepare data") as run:
        run.tags({"lfm.dataset": "x"})
    finish("COMPLETE")
    left = client.get_run(theirs.info.run_id)
    assert (left.info.run_name, left.info.status) == ("theirs", "FINISHED")
    assert "lfm.dataset" not in left.data.tags
    assert statuses(client) == {"a run": "FINISHED", "prepare data": "FINISHED", "theirs": "FINISHED"}


def test_beside_the_plugin_of_kfp_its_own_runs_are_used_and_it_sets_their_end(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = client.create_experiment("by KFP")
    parent = client.create_run(where, run_name="pipeline", tags={PLUGIN_TAG: "run-1"})
    task = client.create_run(where, run_name="task", tags={"mlflow.parentRunId": parent.info.run_id})
    monkeypatch.setenv("MLFLOW_RUN_ID", task.info.run_id)
    assert Membership.here().lineage(connect()) == [task.info.run_id, parent.info.run_id]
    with pipeline_run.step_run("prepare data") as run:
        run.tags({"lfm.dataset": "x"})
    pipeline_run.end_well()
    finish("COMPLETE")
    assert client.get_run(parent.info.run_id).info.status == "RUNNING", "KFP closes it"
    assert client.get_run(parent.info.run_id).data.tags["lfm.dataset"] == "x"


def test_the_parts_of_a_sweep_beside_the_plugin_are_below_one_run(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, sweeps = client.create_experiment("by KFP"), set()
    for number in (1, 2):
        parent = client.create_run(where, run_name=f"part {number}", tags={PLUGIN_TAG: f"run-{number}"})
        task = client.create_run(where, run_name="task", tags={"mlflow.parentRunId": parent.info.run_id})
        monkeypatch.setenv("MLFLOW_RUN_ID", task.info.run_id)
        monkeypatch.setenv("LFM_PIPELINE_RUN", f"run-{number}")
        part = Part("a1b2", number, 2, 4)
        whole_sweep.begin(part)
        assert Membership.here().lineage(connect()) == [task.info.run_id, parent.info.run_id]
        with pipeline_run.step_run("compare") as run:
            whole = whole_sweep.WholeSweep(run.client, part, run.parent)
            sweep = client.get_run(whole.run_id).info
            assert (sweep.run_name, sweep.status, sweep.experiment_id) == ("sweep of 4", "RUNNING", where)
            whole.add([{"name": f"{number}a"}, {"name": f"{number}b"}])
        pipeline_run.end_well()
        assert client.get_run(parent.info.run_id).info.status == "RUNNING", "KFP closes it"
        client.set_terminated(parent.info.run_id)
        assert client.get_run(whole.run_id).info.status == "FINISHED"
        sweeps.add(whole.run_id)
    assert len(sweeps) == 1
    assert [one["name"] for one in whole.scored(whole.there())] == ["1a", "1b", "2a", "2b"]


def test_a_volume_that_cannot_be_written_leaves_no_run_open(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when configure met such a volume: the server is told without the disk."""
    monkeypatch.setattr("lfm.tracking.pipeline_run.StepLogger", _no_disk)
    finish("FAILED")
    assert statuses(client)["a run"] == "FAILED"


def _no_disk(step: str) -> None:
    raise PermissionError(13, "Permission denied")


def test_more_experiments_than_a_page_holds_are_all_searched(client: MlflowClient, home: Path) -> None:
    with contextlib.closing(sqlite3.connect(home / "mlflow.db")) as database:  # a thousand requests take a minute
        columns = [row[1] for row in database.execute("PRAGMA table_info(experiments)") if row[1] != "experiment_id"]
        copied = ", ".join("'other ' || n" if name == "name" else name for name in columns)
        database.execute(
            f"WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 1001) "
            f"INSERT INTO experiments ({', '.join(columns)}) "
            f"SELECT {copied} FROM experiments, numbers WHERE name = 'nightly'"
        )
        database.commit()
    found = list(every(client.search_experiments))
    assert len(found) == len({experiment.experiment_id for experiment in found}) >= 1002
    with pipeline_run.step_run("prepare data"):
        pass
    finish("COMPLETE")
    runs = client.search_runs([client.get_experiment_by_name("nightly").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert [run for run in runs if ATTEMPT in run.data.tags]


# --- an error of the user's is not tried again ---


def test_the_second_attempt_says_the_same_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LFM_PIPELINE_RUN", KEY)
    calls = []

    @step
    def prepare() -> None:
        calls.append(1)
        raise InputError("data.source: photos does not exist; correct the path")

    for attempt in ("0", "1", "2"):
        monkeypatch.setenv("KFP_RETRY_INDEX", attempt)
        with pytest.raises(SystemExit) as end:
            prepare()
        assert end.value.code == 2
    assert len(calls) == 1
    monkeypatch.setenv("KFP_RETRY_INDEX", "0")  # a person corrected it and pressed Retry
    with pytest.raises(SystemExit):
        prepare()
    assert len(calls) == 2


def test_what_may_pass_by_itself_is_tried_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LFM_PIPELINE_RUN", KEY)
    monkeypatch.setenv("KFP_RETRY_INDEX", "0")
    Mistake.of("job").keep(PassingError("the MLflow server does not answer"))
    monkeypatch.setenv("KFP_RETRY_INDEX", "1")
    Mistake.of("job").repeat()


def test_a_crash_is_tried_again_and_so_is_another_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LFM_PIPELINE_RUN", KEY)
    monkeypatch.setenv("KFP_RETRY_INDEX", "0")
    Mistake.of("job").keep(InputError("wrong"))
    monkeypatch.setenv("KFP_RETRY_INDEX", "1")
    with pytest.raises(InputError, match="wrong"):
        Mistake.of("job").repeat()
    Mistake.of("another").repeat()
    monkeypatch.setenv("LFM_PIPELINE_RUN", "another")
    Mistake.of("job").repeat()
