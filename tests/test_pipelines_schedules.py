"""Uploads and schedules on Kubeflow, and what goes wrong on the way there."""

import re
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from lfm.config.presets import PRESETS, load
from lfm.config.sweeps import Part
from lfm.errors import InputError
from lfm.pipelines import kfp_names
from lfm.pipelines.cluster_settings import ClusterSettings
from lfm.pipelines.kfp_client import Cluster
from tests.cluster_commands import NIGHTLY, PRESET, cli, form_of
from tests.kfp_server import Kfp

SETTINGS = ClusterSettings(image="lfm:test")


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
