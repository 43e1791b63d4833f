"""Records for one MLflow server never reach another, though it answers on the same host and port."""

import http.client
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lfm.cli.main import app
from lfm.errors import InputError
from lfm.jobs.pipeline_run import finish
from lfm.tracking import pipeline_run
from lfm.tracking.client import connect
from lfm.tracking.membership import KEY_VARIABLE
from lfm.tracking.step_logger import StepLogger
from lfm.tracking.sync import elsewhere, sync
from lfm.tracking.uri import server_address
from tests.s3 import free_ports

START_SECONDS = 120


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("http://mlflow.example/team-a/", "http://mlflow.example/team-a"),
        ("http://mlflow.example:80/team-b", "http://mlflow.example/team-b"),
        ("https://me:secret@mlflow.example:8443/a/b", "https://mlflow.example:8443/a/b"),
        ("https://MLflow.example:443", "https://mlflow.example"),
        ("http://[::1]:5000/", "http://[::1]:5000"),
    ],
)
def test_the_whole_address_names_a_server_and_no_secret(
    uri: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert server_address() == address


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server under the prefix /b; the URI of its host and port."""
    folder = tmp_path_factory.mktemp("server")
    (port,) = free_ports(1)
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--static-prefix", "/b", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (folder / "log.txt").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        until = time.monotonic() + START_SECONDS
        while not answers(port):
            assert server.poll() is None and time.monotonic() < until, (folder / "log.txt").read_text()[-2000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/b/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def leave_records(uri: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """What a step leaves behind whose server is not there."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv(KEY_VARIABLE, "a-run-of-the-other-server")
    step = StepLogger("train")
    step.begin()
    for epoch in range(10):
        step.log({"stage1/loss": 1.0}, epoch)
    step.end("FINISHED")
    return step.close(0)


@pytest.mark.slow
def test_another_server_behind_the_same_host_and_port_gets_nothing(
    home: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    assert leave_records(f"{prefix}/a", monkeypatch) == 12
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{prefix}/b")
    assert sync() == (0, 0) and elsewhere() == {f"{prefix}/a": 12}
    done = CliRunner().invoke(app, ["sync"])
    assert isinstance(done.exception, InputError) and "records sent" not in done.output
    assert f"12 records wait for MLflow at {prefix}/a; set MLFLOW_TRACKING_URI to it" in str(done.exception)
    assert elsewhere() == {f"{prefix}/a": 12}, "they still wait"


@pytest.mark.slow
def test_refused_is_not_sent(home: Path, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The right server, which does not know the run: its records are kept, and the exit code says so."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    assert leave_records(f"{prefix}/a", monkeypatch) == 12
    (header,) = (home / "outbox").glob("*/header.json")
    header.write_text(header.read_text().replace(f"{prefix}/a", f"{prefix}/b"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{prefix}/b")
    done = CliRunner().invoke(app, ["sync"])
    assert done.exit_code == 1 and "records sent" not in done.output
    assert "12 records were refused by the server and are kept in" in done.output
    kept = (home / "outbox" / "refused.jsonl").read_text().splitlines()
    assert len(kept) == 12 and sum('"do": "metrics"' in line for line in kept) == 10


@pytest.mark.slow
def test_a_step_that_had_no_time_to_say_its_end_is_killed(
    home: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen on KFP 2.17.0: a terminated stage left its records, and `finish` closed it and the run as FAILED."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{prefix}/b")
    monkeypatch.setenv(KEY_VARIABLE, "terminated")
    pipeline_run.begin_pipeline_run("nightly", "a run")
    step = [sys.executable, str(Path(__file__).with_name("programs") / "waiting_step.py")]
    process = subprocess.Popen(step, env=dict(os.environ), stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"ready\n"
    process.kill()
    process.wait()
    assert list((home / "outbox").glob("*/header.json")), "what it left behind"
    finish("RUNNING")
    client = connect()
    ends = {
        run.info.run_name: run.info.status for run in client.search_runs([client.search_experiments()[0].experiment_id])
    }
    assert ends == {"a run": "KILLED", "stage 1": "KILLED"}
    assert not list((home / "outbox").glob("*/header.json"))
