"""MLflow set up wrongly: one line that names the cause and the fix, within seconds, and nothing is changed."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lfm.cli.main import app
from lfm.errors import InputError, PassingError
from lfm.tracking import pipeline_run
from lfm.tracking.client import _down, connect
from lfm.tracking.membership import KEY_VARIABLE
from lfm.tracking.uri import tracking_uri
from tests import warm
from tests.s3 import free_ports


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("./mlruns", "is a folder, and MLflow 3 logs to no folder any more"),
        ("mlruns", r"is a folder.*mlflow migrate-filestore.*or unset it"),
        ("/data/mlruns", "is a folder"),
        ("file:", "is a folder"),
        ("file:///data/mlruns", "is a folder"),
        ("localhost:5000", "has no scheme; write http://localhost:5000"),
        ("mlflow.example.com:80/team", "has no scheme; write http://mlflow.example.com:80/team"),
        ("10.0.0.7:5000", "has no scheme"),
        ("[::1]:5000", r"has no scheme; write http://\[::1\]:5000"),
        ("databricks", "is a Databricks workspace"),
        ("databricks://profile", "is a Databricks workspace"),
        ("uc:http://localhost:8080", "is a Databricks workspace"),
        ("http://", "names no host; write http://HOST:PORT"),
        ("http:/localhost:5000", "names no host"),
        ("http://localhost:70000", "has a port or host that cannot be"),
        ("http://localhost:five", "has a port or host that cannot be"),
        (" http://localhost:5000", "has a blank or a quote around it"),
        ('"http://localhost:5000"', "has a blank or a quote around it"),
        ("htp://localhost:5000", "begins with htp:, where MLflow keeps no runs"),
        ("s3://bucket/mlruns", "begins with s3:"),
        ("postgres://me:secret@db/mlflow", "begins with postgres:"),
        ("sqlite://mlflow.db", "has too few slashes"),
        ("sqlite:mlflow.db", "has too few slashes"),
        ("sqlite:///:memory:", "is a database in the memory of one process"),
    ],
)
def test_an_address_that_cannot_be_is_named_with_what_to_write(
    uri: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match=message) as refused:
        tracking_uri()
    assert str(refused.value).startswith("MLFLOW_TRACKING_URI=") and "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "uri", ["http://localhost:5000", "https://a.b/c", "sqlite:////data/mlflow.db", "postgresql+psycopg://u:p@db/mlflow"]
)
def test_an_address_that_can_be_is_taken(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert tracking_uri() == uri


@pytest.mark.parametrize("name", ["a%20b", "what?", "%41"])
def test_a_home_whose_name_a_database_address_would_change(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LFM_HOME", str(tmp_path / name))
    for command in (["models"], ["runs"], ["ui"], ["run", "fashion-mnist-lt"]):
        refused = CliRunner().invoke(app, command).exception
        assert isinstance(refused, InputError) and "set LFM_HOME or --home to a folder without it" in str(refused)
        assert str(tmp_path / name) in str(refused)
    assert not list(tmp_path.rglob("mlflow.db"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["with a blank", "100%", "a#b", "ünï", "a@b:c", "quo'te"])
def test_a_home_by_any_other_name_has_its_database_in_it(
    name: str, tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LFM_HOME", str(tmp_path / name))
    (tmp_path / name).mkdir()
    shutil.copy(empty_database, tmp_path / name / "mlflow.db")
    connect().create_experiment("here")
    with closing(sqlite3.connect(tmp_path / name / "mlflow.db")) as database:
        assert ("here",) in database.execute("SELECT name FROM experiments").fetchall()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "command",
    [["models"], ["runs"], ["predict", "photo.png", "--model", "models:/birds@champion"], ["promote", "birds", "1"],
     ["rollback", "birds"], ["clean"], ["report", "latest"], ["ui"]],
    ids=lambda command: command[0],
)  # fmt: skip
def test_a_command_that_reads_makes_no_database_of_a_mistyped_name(
    command: list[str], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photo.png").write_bytes(b"of no matter")
    place = tmp_path / "mistyped" / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}")
    refused = CliRunner().invoke(app, command).exception
    assert isinstance(refused, InputError)
    assert "there" in str(refused) and str(place.parent) in str(refused)
    assert not place.parent.exists()


@pytest.mark.slow
def test_a_home_without_runs_is_read_and_stays_empty(home: Path) -> None:
    for command in ("models", "runs"):
        done = CliRunner().invoke(app, [command])
        assert done.exit_code == 0 and f"in {home}" in done.output
    assert not home.exists()


@pytest.mark.slow
def test_a_run_says_where_it_makes_a_database(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "new" / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}")
    monkeypatch.setenv(KEY_VARIABLE, "a-test")
    pipeline_run.begin_pipeline_run("birds", "a run")
    said = f"MLFLOW_TRACKING_URI names a file that is not there: a new database is made, {place}"
    assert capfd.readouterr().out.count(said) == 1 and place.is_file()
    pipeline_run.begin_pipeline_run("birds", "a run")
    assert said not in capfd.readouterr().out


@pytest.mark.slow
def test_the_command_says_it_in_one_line_within_seconds(home: Path) -> None:
    command = [*warm.lfm(), "run", "fashion-mnist-lt"]
    began = time.monotonic()
    done = subprocess.run(
        command, env={**os.environ, "MLFLOW_TRACKING_URI": "localhost:5000"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: MLFLOW_TRACKING_URI=localhost:5000 has no scheme; write http://localhost:50")
    assert time.monotonic() - began < 20


@pytest.mark.slow
def test_a_server_that_takes_no_connections_is_said_within_seconds(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener with a full queue lets connections hang, as a firewall does."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(8)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        for address in (f"http://127.0.0.1:{port}", f"postgresql+psycopg://me:secret@127.0.0.1:{port}/mlflow"):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            began = time.monotonic()
            with pytest.raises(InputError, match=rf"127\.0\.0\.1:{port}.* does not answer") as refused:
                connect()
            assert time.monotonic() - began < 15 and "secret" not in str(refused.value)
        for one in waiting:
            one.close()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://no-such-host.invalid:5000")
    with pytest.raises(InputError, match=r"no-such-host\.invalid:5000: there is no host of that name"):
        connect()


@pytest.mark.slow
def test_in_a_pod_a_server_is_waited_for_and_elsewhere_it_is_not(
    home: Path, empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Seen on KFP 2.17.0: half a minute without a name server ended a retraining in its first step."""
    (port,) = free_ports(1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv(KEY_VARIABLE, "nightly")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(PassingError, match="does not answer"):
        pipeline_run.begin_pipeline_run("custom", "a run")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("LFM_MLFLOW_PATIENCE", "2")
    began = time.monotonic()
    with pytest.raises(PassingError, match="does not answer"):
        pipeline_run.begin_pipeline_run("custom", "a run")
    assert 2 <= time.monotonic() - began < 30
    assert "waiting for MLflow, 2 s at most" in capfd.readouterr().out
    monkeypatch.setenv("LFM_MLFLOW_PATIENCE", "120")
    store = shutil.copyfile(empty_database, tmp_path / "server.db")
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{store}", "--artifacts-destination", str(tmp_path / "files"),
    ]  # fmt: skip
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        assert pipeline_run.begin_pipeline_run("custom", "a run") == "nightly"
        assert "waiting for MLflow, 120 s at most" in capfd.readouterr().out
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_a_name_server_that_does_not_answer_is_no_wrong_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://lfm-mlflow:5000")
    passing = _down(socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"))
    assert isinstance(passing, PassingError) and "no name server knows its name at the moment" in str(passing)
    wrong = _down(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    assert not isinstance(wrong, PassingError) and "there is no host of that name" in str(wrong)
