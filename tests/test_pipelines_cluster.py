"""Submitting to Kubeflow: runs, their names and options, waiting."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from lfm.cli.cluster_options import OnCluster
from lfm.cli.main import app
from lfm.config.presets import load
from lfm.pipelines import kfp_names
from lfm.pipelines.kfp_client import Cluster
from tests.cluster_commands import NIGHTLY, PRESET, cli, form_of
from tests.kfp_server import Kfp


@pytest.mark.slow
def test_submit_creates_the_experiment_and_a_run_with_the_compiled_pipeline(kfp: Kfp) -> None:
    done = cli(
        "submit", PRESET, "--host", kfp.host, "--set", "stage1.epochs=3", "--set", "stage1.clip=0.5", "--image", "lfm:7"
    )
    assert done.exit_code == 0, done.output
    (experiment,) = kfp.of("POST", "/experiments")
    assert experiment.body["display_name"] == PRESET
    (run,) = kfp.of("POST", "/runs")
    assert run.path == "/apis/v2beta1/runs" and run.body["experiment_id"] == "e0"
    named = r"lfm \+ ce, stage1.epochs 3, stage1.clip 0.5, seed 0 \(train, 20\d\d-\d\d-\d\d [\d:]+\)"
    assert re.fullmatch(named, run.body["display_name"]), run.body["display_name"]
    assert run.body["runtime_config"]["parameters"] == form_of(PRESET, stage1_epochs=3, overrides={"stage1.clip": 0.5})
    spec = run.body["pipeline_spec"]
    assert spec["pipeline_spec"]["pipelineInfo"]["name"] == PRESET and "kubernetes" in json.dumps(spec["platform_spec"])
    assert '"lfm:7"' in json.dumps(spec)
    assert f"{PRESET}: run r0\n{kfp.host}/#/runs/details/r0\n" in done.output
    cli("submit", PRESET, "--host", kfp.host, "--experiment", "mine")
    cli("submit", PRESET, "--host", kfp.host)
    assert [one["display_name"] for one in kfp.experiments] == [PRESET, "mine"], "an experiment is made once"


@pytest.mark.slow
def test_runs_and_schedules_are_the_service_account_of_the_cluster_file(kfp: Kfp, tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("service_account: lfm-steps")
    where = ("--host", kfp.host, "--cluster", str(tmp_path / "cluster.yaml"))
    assert cli("submit", PRESET, *where).exit_code == 0
    assert cli("schedule", PRESET, "--cron", NIGHTLY, *where).exit_code == 0
    assert cli("submit", PRESET, "--host", kfp.host).exit_code == 0
    own, kubeflows = (run.body.get("service_account") for run in kfp.of("POST", "/runs"))
    assert own == kfp.recurring[0]["service_account"] == "lfm-steps", "pipeline-runner may not make TrainJobs"
    assert kubeflows is None


@pytest.mark.slow
def test_the_number_of_gpus_is_said_by_one_option(kfp: Kfp, tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("accelerator: nvidia.com/gpu")
    where = ("--host", kfp.host, "--gpus", "8", "--cluster", str(tmp_path / "cluster.yaml"))
    assert cli("submit", PRESET, *where).exit_code == 0
    assert cli("schedule", PRESET, "--cron", NIGHTLY, *where).exit_code == 0
    assert kfp.runs[0]["runtime_config"]["parameters"]["gpus"] == "8"
    assert kfp.recurring[0]["runtime_config"]["parameters"]["gpus"] == "8"
    assert cli("upload", PRESET, *where).exit_code == 0
    uploaded = kfp.of("POST", "/pipelines/upload")[-1].body.decode()
    assert re.search(r"gpus:\n +defaultValue: '8'", uploaded), "the form starts with them"
    kfp.asked.clear()
    none = cli("submit", PRESET, "--host", kfp.host, "--gpus", "8")
    assert "--gpus 8: the cluster's settings name no GPUs, so none would be asked for" in str(none.exception)
    assert not kfp.asked


@pytest.mark.slow
def test_kfps_mlflow_plugin_is_given_the_preset_as_the_experiment(kfp: Kfp) -> None:
    """Else its runs are all in the experiment "KFP-Default"."""
    where = ("--host", kfp.host, "--cluster", "infra/cluster-mlflow-plugin.yaml", "--experiment", "mine")
    assert cli("submit", PRESET, *where).exit_code == 0
    assert cli("schedule", PRESET, "--cron", NIGHTLY, "--set", "data.imbalance=50", *where).exit_code == 0
    kfp.states = ["SUCCEEDED"] * 2
    swept = cli("sweep", PRESET, "--grid", "alpha", "--seeds", "3", "--runner", "kfp", *where[:4])
    assert swept.exit_code == 0, swept.output
    asked = [*kfp.of("POST", "/runs"), *kfp.of("POST", "/recurringruns")]
    assert len(asked) == 4
    assert [one.body["plugins_input"] for one in asked] == [{"mlflow": {"experiment_name": PRESET}}] * 4
    kfp.asked.clear()
    assert cli("submit", PRESET, "--host", kfp.host).exit_code == 0
    assert "plugins_input" not in kfp.of("POST", "/runs")[0].body


@pytest.mark.slow
def test_a_schedule_with_a_plugin_needs_no_parameters_but_its_versions_defaults(kfp: Kfp) -> None:
    """KFP drops those of a recurring run with plugins_input that names a version (resource_manager.go:1314)."""
    where = ("--host", kfp.host, "--cluster", "infra/cluster-mlflow-plugin.yaml")
    assert cli("schedule", PRESET, "--cron", NIGHTLY, "--set", "data.imbalance=50", *where).exit_code == 0
    sent = kfp.of("POST", "/pipelines/upload")[0].body.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]
    parameters = next(yaml.load_all(sent, yaml.CSafeLoader))["root"]["inputDefinitions"]["parameters"]
    given = kfp.recurring[0]["runtime_config"]["parameters"]
    assert {name: one["defaultValue"] for name, one in parameters.items()} == given
    assert given["data_imbalance"] == 50


@pytest.mark.slow
def test_every_step_is_told_to_make_its_result_again(kfp: Kfp) -> None:
    assert cli("submit", PRESET, "--host", kfp.host, "--no-cache").exit_code == 0
    assert cli("submit", PRESET, "--host", kfp.host).exit_code == 0
    told = []
    for run in kfp.runs:
        executors = run["pipeline_spec"]["pipeline_spec"]["deploymentSpec"]["executors"].values()
        told.append([{"name": "LFM_NO_CACHE", "value": "1"} in one["container"].get("env", []) for one in executors])
    assert all(told[0]) and not any(told[1])


@pytest.mark.slow
def test_a_variable_that_is_given_twice_is_found_before_a_cluster_is_asked(kfp: Kfp, tmp_path: Path) -> None:
    """The API server refuses such a pod each time, and the run hangs (seen)."""
    file = tmp_path / "cluster.yaml"
    file.write_text("{environment: {HF_TOKEN: a}, secrets: [{name: hub, keys: {token: HF_TOKEN}}]}")
    for command in (["compile", PRESET, "-o", str(tmp_path / "x.yaml")], ["submit", PRESET, "--host", kfp.host]):
        done = cli(*command, "--cluster", str(file))
        assert re.search(r"HF_TOKEN is set more than once, and \d+ more; name each variable once", str(done.exception))
    assert not kfp.of("POST", "/runs") and not (tmp_path / "x.yaml").exists()


@pytest.mark.parametrize("command", ["submit", "upload", "schedule"])
def test_every_command_for_a_cluster_has_the_same_options(command: str) -> None:
    parameters = {one.name: one for one in get_command(app).commands[command].params}  # type: ignore[attr-defined]
    shared = [parameters[one.name] for one in fields(OnCluster)]
    assert {option for one in shared for option in one.opts} >= {
        "--host", "--namespace", "--image", "--cluster", "--gpus"
    }  # fmt: skip
    assert all(one.help for one in shared), "each says what it is"


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"seed": 3, "loss.name": "mms", "mixup.name": "none"}, "mms, seed 3"),
        ({"stage1.lr": 0.001, "data.imbalance": 50}, "lfm + ce, data.imbalance 50.0, stage1.lr 0.001, seed 0"),
        (
            {"stage1.epochs": 1, "stage1.clip": 1, "stage1.lr": 1e-3, "stage1.warmup": 0.2, "data.imbalance": 50},
            "lfm + ce, data.imbalance 50.0, stage1.epochs 1, stage1.lr 0.001, stage1.warmup 0.2, ..., seed 0",
        ),
    ],
)
def test_a_run_is_named_after_what_it_changes(changes: dict[str, Any], shown: str) -> None:
    assert re.fullmatch(
        rf"{re.escape(shown)} \(retrain, 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\)",
        kfp_names.run_name("retrain", load(PRESET, changes)),
    )


@pytest.mark.parametrize(
    ("states", "code", "last"),
    [
        (["PENDING", "RUNNING", "RUNNING", "SUCCEEDED"], 0, "SUCCEEDED"),
        (["RUNNING", "CANCELING", "CANCELED"], 1, "CANCELED"),
        (["FAILED"], 1, "FAILED"),
    ],
)
def test_wait_tells_each_state_and_ends_with_the_run(kfp: Kfp, states: list[str], code: int, last: str) -> None:
    kfp.runs.append({"run_id": "r0", "display_name": "x"})
    kfp.states = list(states)
    told: list[str] = []
    assert Cluster(kfp.host).wait("r0", told.append) == last
    assert told == list(dict.fromkeys(states))


@pytest.mark.slow
def test_submit_and_wait_end_with_the_code_of_the_run(kfp: Kfp) -> None:
    kfp.states = ["RUNNING", "FAILED"]
    done = cli("submit", PRESET, "--host", kfp.host, "--wait")
    assert done.exit_code == 1 and isinstance(done.exception, RuntimeError)
    assert f"the run ended as FAILED; {kfp.host}/#/runs/details/r0" in str(done.exception)
