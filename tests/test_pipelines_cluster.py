"""Submit, upload and schedule against a server that records the requests of the real KFP SDK."""

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from lfm.cli.cluster_options import OnCluster
from lfm.cli.main import app
from lfm.config.presets import PRESETS, load
from lfm.config.run_parameters import parameter_values
from lfm.config.sweeps import Part
from lfm.errors import InputError
from lfm.pipelines import kfp_client as cluster_module
from lfm.pipelines import kfp_names
from lfm.pipelines.cluster_settings import ClusterSettings
from lfm.pipelines.kfp_client import Cluster
from tests.kfp_server import Kfp, serve_kfp

SETTINGS = ClusterSettings(image="lfm:test")
NIGHTLY = "0 0 3 * * *"
PRESET = "fashion-mnist-lt"


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Kfp]:
    for name in ("KF_PIPELINES_ENDPOINT", "KUBERNETES_SERVICE_HOST", "KUBECONFIG", "KF_PIPELINES_SA_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no kubectl, no cookie of the developer's
    monkeypatch.setattr(cluster_module, "POLL", 0.01)
    with serve_kfp() as server:
        yield server


def cli(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


def form_of(preset: str, **changed: Any) -> dict[str, Any]:
    return {**parameter_values(load(preset)), "overrides": {}, **changed}


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


@pytest.mark.slow
def test_upload_makes_a_pipeline_and_then_versions_of_it(kfp: Kfp) -> None:
    cluster = Cluster(kfp.host)
    assert cluster.upload("train", load(PRESET), SETTINGS) == ("p0", "v0")
    assert cluster.upload("train", load(PRESET), SETTINGS) == ("p0", "v1")
    assert cluster.upload("retrain", load(PRESET), SETTINGS) == ("p1", "v2")
    first, other = kfp.of("POST", "/pipelines/upload")
    assert (first.query["name"], other.query["name"]) == (PRESET, f"{PRESET}-retrain")
    (version,) = kfp.of("POST", "/pipelines/upload_version")
    assert version.query["pipelineid"] == "p0" and re.match(r"\S+ 20\d\d-", version.query["name"])
    sent = first.body.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]  # the file of the form
    spec, platform = yaml.load_all(sent, yaml.CSafeLoader)
    assert spec["pipelineInfo"]["name"] == PRESET and "kubernetes" in platform["platforms"]


@pytest.mark.slow
def test_a_schedule_retrains_one_at_a_time_without_making_up_for_missed_runs(kfp: Kfp) -> None:
    done = cli("schedule", PRESET, "--cron", "0  0 3 * * *", "--host", kfp.host, "--set", "data.imbalance=50")
    assert done.exit_code == 0, done.output
    (asked,) = kfp.of("POST", "/recurringruns")
    assert asked.path == "/apis/v2beta1/recurringruns"
    body = asked.body
    assert body["no_catchup"] is True and body["max_concurrency"] in (1, "1") and body["mode"] == "ENABLE"
    assert body["trigger"] == {"cron_schedule": {"cron": NIGHTLY}}
    assert body["pipeline_version_reference"] == {"pipeline_id": "p0", "pipeline_version_id": "v0"}
    assert body["runtime_config"]["parameters"] == form_of(PRESET, data_imbalance=50.0)
    assert body["display_name"] == f"{PRESET}-retrain-" and body["experiment_id"] == "e0"
    assert "pipeline_spec" not in body, "the version says it, and its compiled caching options with it"
    again = cli("schedule", PRESET, "--cron", NIGHTLY, "--host", kfp.host)
    assert f"{PRESET} has a schedule, {NIGHTLY}; change it with lfm schedule replace {PRESET}" in str(again.exception)
    assert len(kfp.recurring) == 1


@pytest.mark.parametrize("preset", PRESETS)
def test_the_runs_of_a_schedule_have_names_that_can_be_read(preset: str) -> None:
    """KFP 2.17.0, template.go:325: 25 letters, digits and hyphens of the schedule's name, then five of its own."""
    kept = re.sub("[^a-z0-9-]+", "", kfp_names.schedule_name(preset).lower())[:25]
    assert kept == f"{preset}-retrain-"[:25] and kept.startswith(preset), "the whole preset's name at least"


def test_schedules_are_listed_over_pages_paused_resumed_and_deleted(kfp: Kfp) -> None:
    cron = {"cron_schedule": {"cron": NIGHTLY}}
    for k, name in enumerate((f"{PRESET}-retrain", "somebody-else", "custom-retrain-")):
        kfp.recurring.append({"recurring_run_id": f"id{k}", "display_name": name, "status": "ENABLED", "trigger": cron})
    shown = cli("schedule", "list", "--host", kfp.host).output.splitlines()
    assert [line.split() for line in shown][2] == ["custom-retrain", *NIGHTLY.split(), "on", "id2"]
    assert cli("schedule", "pause", "custom", "--host", kfp.host).output == f"paused custom-retrain ({NIGHTLY}), id2\n"
    assert kfp.of("POST", "/recurringruns/id2:disable") and kfp.recurring[2]["status"] == "DISABLED"
    assert "paused   id2" in cli("schedule", "list", "--host", kfp.host).output
    assert cli("schedule", "resume", "id2", "--host", kfp.host).exit_code == 0
    assert kfp.of("POST", "/recurringruns/id2:enable")
    assert cli("schedule", "delete", PRESET, "--host", kfp.host).exit_code == 0
    assert kfp.of("DELETE", "/recurringruns/id0") and len(kfp.recurring) == 2
    missing = cli("schedule", "delete", PRESET, "--host", kfp.host)
    assert f"there is no schedule for {PRESET}" in str(missing.exception)
    kfp.recurring.append(dict(kfp.recurring[1], recurring_run_id="id3"))
    several = cli("schedule", "pause", "custom", "--host", kfp.host)
    assert "custom has 2 schedules: id2, id3; name one by its id" in str(several.exception)


def test_a_schedule_whose_run_goes_on_is_neither_deleted_nor_replaced(kfp: Kfp) -> None:
    """KFP 2.17.0, seen: the workflows of a schedule are its own in Kubernetes, and are removed with it."""
    cron = {"cron_schedule": {"cron": NIGHTLY}}
    kfp.recurring.append({"recurring_run_id": "id0", "display_name": f"{PRESET}-retrain-", "trigger": cron})
    kfp.runs += [
        {"run_id": "other", "display_name": "another", "state": "RUNNING", "recurring_run_id": "id7"},
        {"run_id": "night", "display_name": "a night", "state": "RUNNING", "recurring_run_id": "id0"},
    ]
    for what in (("delete", PRESET), ("replace", PRESET, "--cron", NIGHTLY)):
        done = cli("schedule", *what, "--host", kfp.host)
        assert f"{PRESET}-retrain: its run night goes on, and KFP would remove that" in str(done.exception)
    assert len(kfp.recurring) == 1 and not kfp.of("POST", "/recurringruns")
    kfp.runs[1]["state"] = "FAILED"
    assert cli("schedule", "delete", PRESET, "--host", kfp.host).exit_code == 0


@pytest.mark.slow
def test_replace_makes_the_new_schedule_before_it_deletes_the_old(kfp: Kfp) -> None:
    cluster = Cluster(kfp.host)
    cluster.schedule(load(PRESET), NIGHTLY, SETTINGS)
    kfp.asked.clear()
    made = cluster.replace(load(PRESET, {"seed": 1}), "0 30 4 * * SUN", SETTINGS)
    order = [(one.method, one.path) for one in kfp.asked if "recurringruns" in one.path and one.method != "GET"]
    assert order == [("POST", "/apis/v2beta1/recurringruns"), ("DELETE", "/apis/v2beta1/recurringruns/r0")]
    (left,) = kfp.recurring
    assert left["trigger"]["cron_schedule"]["cron"] == made.cron == "0 30 4 * * SUN"
    assert left["runtime_config"]["parameters"]["seed"] == 1
    assert left["pipeline_version_reference"]["pipeline_version_id"] == "v1", "today's code, as a new version"


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.mark.parametrize(
    ("refuse", "message"),
    [
        ((401, {"message": "no token"}), r"refuses \(401\): log in as the KFP SDK does \(KF_PIPELINES_SA_TOKEN_PATH"),
        ((403, "<html>denied</html>"), r"refuses \(403\): .* name your namespace with --namespace"),
        ((404, "<html>nginx</html>"), r"does not know it \(404\): check the path, often /pipeline"),
        ((200, "<html>a dashboard</html>"), "answers, but not as KFP; check the path, often /pipeline"),
        (
            (500, {"code": 13, "message": "database is down\nstack"}),
            r"answers with an error \(500\): database is down$",
        ),
    ],
)
def test_what_goes_wrong_is_one_line_that_says_what_to_check(kfp: Kfp, refuse: Any, message: str) -> None:
    kfp.refuse = refuse
    with pytest.raises(InputError, match=message) as error:
        Cluster(kfp.host)
    assert "\n" not in str(error.value) and kfp.host in str(error.value)
    assert len(kfp.asked) == 1, "asked once, not five times with waits between"


def test_a_host_that_is_not_there_and_none_at_all(kfp: Kfp) -> None:
    with pytest.raises(InputError, match=r"nothing answers at http://127.0.0.1:\d+: check the address"):
        Cluster(f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(
        InputError, match=r"no KFP to talk to; name it with --host https://... or KF_PIPELINES_ENDPOINT"
    ):
        Cluster()


@pytest.mark.slow
def test_a_request_that_kfp_refuses_tells_its_reason(kfp: Kfp) -> None:
    cluster = Cluster(kfp.host)
    kfp.refuse = (400, {"code": 3, "message": "Invalid input error: the cron is bad"})
    with pytest.raises(InputError, match=r"answers with an error \(400\): Invalid input error: the cron is bad"):
        cluster.upload("train", load(PRESET), SETTINGS)


def test_who_we_are_is_the_sdks_own_environment_to_say(
    kfp: Kfp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("secret-token")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", kfp.host)
    Cluster().schedules()
    assert kfp.asked[-1].headers.get("authorization") == "Bearer secret-token"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("schedule", "pause"), "pause of what?"),
        (("schedule", PRESET), "Give --cron with six fields"),
        (("schedule", PRESET, "--cron", "0 3 * * *"), r'add the seconds in front: "0 0 3 \* \* \*"'),
        (("schedule", "no-such", "--cron", NIGHTLY), "unknown preset 'no-such'"),
        (("schedule", PRESET, "twice", "--cron", NIGHTLY), "one name too many"),
        (("submit", PRESET, "--kind", "retain"), "unknown kind 'retain'; did you mean retrain"),
        (("upload",), "name a preset or give --all"),
        (("upload", PRESET, "--all"), "--all goes without names"),
        (("compile", PRESET, "--set", "stage1.epoch=1"), "did you mean stage1.epochs"),
        (("run", PRESET, "--runner", "dokker"), "unknown runner 'dokker'; did you mean docker"),
        (("run", PRESET, "--image", "x"), "--image is for --runner docker and kfp"),
        (
            ("sweep", PRESET, "--cluster", "infra/cluster.yaml"),
            "--host, --namespace and --cluster are for --runner kfp",
        ),
        (("run", PRESET, "--runner", "kfp", "--json", "x"), "--json and --home are for runs on this machine"),
    ],
)
def test_mistakes_are_found_before_a_cluster_is_asked(kfp: Kfp, arguments: tuple[str, ...], message: str) -> None:
    host = () if arguments[0] == "compile" else ("--host", kfp.host)
    done = cli(*arguments, *host)
    assert isinstance(done.exception, InputError) and re.search(message, str(done.exception)), done.exception
    assert not kfp.asked


@pytest.mark.slow
def test_a_large_sweep_becomes_runs_one_after_the_other(kfp: Kfp) -> None:
    kfp.states = ["PENDING", "RUNNING", "FAILED", "SUCCEEDED"]
    done = cli("sweep", PRESET, "--grid", "alpha", "--seeds", "7", "--runner", "kfp", "--host", kfp.host)
    assert done.exit_code == 0, done.output
    order = [(one.method, one.path.split("/")[-1]) for one in kfp.asked if "/runs" in one.path]
    assert order == [("POST", "runs"), *[("GET", "r0")] * 3, ("POST", "runs"), ("GET", "r1"), ("POST", "runs")]
    roots = [run["pipeline_spec"]["pipeline_spec"]["root"]["inputDefinitions"] for run in kfp.runs]
    variants = [root["parameters"]["variants"]["defaultValue"] for root in roots]
    assert [len(part) for part in variants] == [21, 21, 21]
    assert len({one["name"] for part in variants for one in part}) == 63
    assert "(sweep 2 of 3, 20" in kfp.runs[1]["display_name"]
    told = [Part.parse(root["parameters"]["part"]["defaultValue"]) for root in roots]
    assert [(part.number, part.of, part.configurations) for part in told if part] == [(k, 3, 63) for k in (1, 2, 3)]
    assert len({part.sweep for part in told if part}) == 1, "so that they are compared as one"


def test_run_with_the_kfp_runner_submits_each_method(kfp: Kfp) -> None:
    done = cli("run", PRESET, "--baseline", "--runner", "kfp", "--host", kfp.host)
    assert done.exit_code == 0, done.output
    assert [run["runtime_config"]["parameters"]["mixup_name"] for run in kfp.runs] == ["none", "lfm"]
