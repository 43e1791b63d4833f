"""A home that was moved, copied or mounted elsewhere: its models are found, and what is new goes to where it is now."""

import hashlib
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lfm.cli.main import app
from lfm.storage.artifact import publishing, verify
from lfm.tracking import past_runs, pipeline_run, registration, registry
from lfm.tracking.client import connect
from lfm.tracking.database import ARTIFACTS, PATHS
from lfm.tracking.membership import KEY_VARIABLE

pytestmark = pytest.mark.slow


@pytest.fixture
def old(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with an evaluated run and a registered champion."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = tmp_path / "an old place"
    home.mkdir()
    shutil.copy(empty_database, home / "mlflow.db")
    monkeypatch.setenv("LFM_HOME", str(home))
    begin(monkeypatch, "first")
    with pipeline_run.step_run("register") as step:
        step.text("a page", "report.html")
        step.params({"preset": "birds"}, on_parent=True)
        step.log({"test/all": 80.0}, 0)
        with publishing(home / "made", "model", {}) as aside:
            (aside / "weights").write_bytes(b"weights")
        step.client.log_artifacts(step.parent, str(home / "made"), "model")
        source = f"{step.client.get_run(step.parent).info.artifact_uri}/model"
        step.client.create_registered_model("birds")
        step.client.create_model_version("birds", source, step.parent)
        registry.promote("birds", "1", "the first")
    return home


def begin(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    pipeline_run.begin_pipeline_run("birds", key)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def addresses(home: Path) -> set[str]:
    """All paths of artifacts in the database."""
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        found = [row[0] for table, column in PATHS for row in database.execute(f"SELECT {column} FROM {table}")]
    return {uri for uri in found if uri and "mlruns" not in uri}  # MLflow's own experiment, which nothing of ours uses


def read_all(folder: Path) -> None:
    """What the commands read: the champion's weights, and the page of the newest run."""
    uri = registry.only_one()
    model = registration.fetch_model(uri, folder / "model")
    assert uri == "models:/birds/1" and verify(model) and (model / "weights").read_bytes() == b"weights"
    run = next(run for run in past_runs.evaluated() if run.name == "first")
    assert (past_runs.download(run, ["report.html"], folder / "page") / "report.html").read_text() == "a page"


def test_it_is_read_where_it_is_now_and_not_changed(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = old.rename(tmp_path / "mounted #2")
    monkeypatch.setenv("LFM_HOME", str(new))
    before = digest(new / "mlflow.db")
    read_all(tmp_path / "read")
    done = CliRunner().invoke(app, ["models"])
    assert done.exit_code == 0 and "models:/birds/1" in done.output and "all 80.0" in done.output
    assert digest(new / "mlflow.db") == before, "whoever writes to it may see it in another place"
    assert not old.exists(), "nothing is made in the old place"


def test_a_new_run_goes_to_where_it_is_now(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    new = old.rename(tmp_path / "new")
    monkeypatch.setenv("LFM_HOME", str(new))
    capsys.readouterr()
    begin(monkeypatch, "second")
    assert f"LFM_HOME was at {old.as_uri().removeprefix('file://')}; " in capsys.readouterr().out
    with pipeline_run.step_run("evaluate") as step:
        step.text("a second page", "report.html")
        parent = step.parent
    (page,) = new.glob(f"{ARTIFACTS}/{parent}/artifacts/report.html")
    assert page.read_text() == "a second page" and not old.exists()
    assert addresses(new) and all(uri.startswith((new / ARTIFACTS).as_uri()) for uri in addresses(new))
    read_all(tmp_path / "read")
    begin(monkeypatch, "third")
    assert "LFM_HOME was" not in capsys.readouterr().out, "once is enough"


def test_a_copy_is_a_home_of_its_own(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copytree(old, tmp_path / "copy")
    shutil.rmtree(old / ARTIFACTS)
    monkeypatch.setenv("LFM_HOME", str(copy))
    read_all(tmp_path / "read")
    before = digest(old / "mlflow.db")
    begin(monkeypatch, "second")
    assert digest(old / "mlflow.db") == before and str(copy) in "".join(addresses(copy))


def test_another_name_of_the_same_place_changes_nothing(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(old)
    monkeypatch.setenv("LFM_HOME", str(tmp_path / "link"))
    before = addresses(old)
    begin(monkeypatch, "second")
    assert before <= addresses(old)
    read_all(tmp_path / "read")


def test_what_others_keep_in_the_database_is_left_alone(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = f"{(tmp_path / 'of somebody else').as_uri()}/store"
    connect().create_experiment("theirs", artifact_location=elsewhere)
    beside = f"{(old / ARTIFACTS).as_uri()}-2/x"
    connect().create_experiment("beside", artifact_location=beside)
    new = old.rename(tmp_path / "new")
    monkeypatch.setenv("LFM_HOME", str(new))
    begin(monkeypatch, "second")
    assert {elsewhere, beside} <= addresses(new)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
def test_a_home_that_cannot_be_written_is_read(old: Path, tmp_path: Path) -> None:
    """By a user who may not write there."""
    for path in (*old.rglob("*"), old, *[p for p in old.parents if "pytest" in str(p)]):
        path.chmod(0o755 if path.is_dir() else 0o444)
    child = os.fork()
    if not child:
        try:
            os.setuid(65534)
            os.environ["TMPDIR"] = "/tmp"
            assert not os.access(old, os.W_OK)
            read_all(Path("/tmp") / f"lfm-read-{os.getpid()}")
            shutil.rmtree(f"/tmp/lfm-read-{os.getpid()}")
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
