"""MLflow's SQLite file of another version, of another program, damaged, half written or held: one line, untouched."""

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from typer.testing import CliRunner

from lfm.cli.main import app
from lfm.errors import InputError
from lfm.tracking.client import connect
from tests import warm

OLD = Path(__file__).parent / "data" / "mlflow-2.9.2.sql"
"""A database that MLflow 2.9.2 made, with an experiment, a run and a registered model, as SQLite's text."""


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def from_text(sql: Path, database: Path) -> str:
    """Make a database of SQLite's text; the hash of its bytes."""
    database.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(database)) as new:
        new.executescript(sql.read_text())
    return digest(database)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


COMMANDS = (
    ["models"], ["runs"], ["compare", "a", "b"], ["report", "latest"], ["predict", __file__], ["serve"], ["ui"],
    ["promote", "m", "1"], ["rollback", "m"],
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_database_of_an_older_mlflow_is_refused_and_not_touched(command: list[str], home: Path) -> None:
    before = from_text(OLD, home / "mlflow.db")
    refused = CliRunner().invoke(app, command).exception
    assert isinstance(refused, InputError) and refused.exit_code == 2, refused
    said = str(refused)
    assert "schema acf3f17fdcc7 of 2023-10-23" in said and f"MLflow {mlflow.__version__} has " in said
    assert said.endswith(f"copy the file, then mlflow db upgrade sqlite:///{home / 'mlflow.db'}")
    assert digest(home / "mlflow.db") == before, "its own MLflow can still open it"


@pytest.mark.slow
def test_after_the_copy_and_the_upgrade_it_is_read(home: Path) -> None:
    from_text(OLD, home / "mlflow.db")
    shutil.copy(home / "mlflow.db", home / "copy.db")
    upgrade = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{home / 'mlflow.db'}"]
    subprocess.run(upgrade, check=True, capture_output=True, timeout=120)
    done = CliRunner().invoke(app, ["models"])
    assert done.exit_code == 0 and "models:/fashion-mnist-lt/1" in done.output


@pytest.mark.slow
def test_an_mlflow_that_was_killed_before_it_held_anything_goes_on(home: Path) -> None:
    """It makes the tables one version after the other."""
    from_text(OLD, home / "mlflow.db")
    with closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        for table in ("latest_metrics", "metrics", "runs", "model_versions", "registered_models"):
            database.execute(f"DELETE FROM {table}")
        database.execute("DELETE FROM experiments WHERE name != 'Default'")
    assert [one.name for one in connect().search_experiments()] == ["Default"]


@pytest.mark.slow
def test_another_schema_or_a_damaged_file_is_one_line_too(home: Path, empty_database: Path) -> None:
    place = home / "mlflow.db"
    home.mkdir()
    cases: list[tuple[str, str]] = []

    def refused() -> str:
        before = digest(place)
        error = CliRunner().invoke(app, ["runs"]).exception
        assert isinstance(error, InputError) and digest(place) == before, error
        cases.append((str(error), before))
        return str(error)

    shutil.copy(empty_database, place)
    with closing(sqlite3.connect(place)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'feedbeef0001'")
    assert "was written by another or newer MLflow (schema feedbeef0001" in refused()
    place.unlink()
    with closing(sqlite3.connect(place)) as database, database:
        database.execute("CREATE TABLE bookmarks (url TEXT)")
    assert "is a database of another program" in refused()
    with closing(sqlite3.connect(place)) as database, database:  # another program that uses alembic
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.execute("INSERT INTO alembic_version VALUES ('abc')")
    assert "is a database of another program" in refused()
    place.write_bytes(b"<html>not found</html>" * 100)
    assert "is damaged or cannot be read (file is not a database)" in refused()
    whole = empty_database.read_bytes()
    place.write_bytes(whole[:5000])
    assert "is damaged or cannot be read" in refused()
    place.write_bytes(whole[:100] + bytes(4000) + whole[4100:])
    assert "is damaged or cannot be read" in refused()
    assert all("\n" not in said for said, _ in cases)


KILLED = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA cache_size = 1")
database.execute("BEGIN")
database.execute("DELETE FROM alembic_version")
database.execute("CREATE TABLE half (text)")
for number in range(2000):
    database.execute("INSERT INTO half VALUES (?)", ("x" * 1000,))
assert os.path.getsize(sys.argv[1] + "-journal")
os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("tables")
def test_what_a_killed_process_left_half_written_is_no_damage(home: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(home / "mlflow.db")], timeout=60)
    assert done.returncode == -9 and (home / "mlflow.db-journal").stat().st_size > 0
    assert CliRunner().invoke(app, ["models"]).output.startswith("no registered models")
    assert not (home / "mlflow.db-journal").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("tables")
def test_a_database_that_another_process_holds_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lfm.tracking.database.BUSY_SECONDS", 0.5)
    with closing(sqlite3.connect(home / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(InputError, match=r"mlflow\.db is locked by another process"):
            connect()
    assert connect().search_experiments()


@pytest.mark.slow
@pytest.mark.usefixtures("tables")
def test_damage_that_is_met_later_is_one_line(home: Path) -> None:
    """Pages of one table alone are broken: the command meets them as it reads."""
    client = connect()
    for number in range(400):
        client.create_registered_model(f"model-{number:04}", tags={"what": "x" * 100})
    path = home / "mlflow.db"
    with closing(sqlite3.connect(path)) as database:
        size = database.execute("PRAGMA page_size").fetchone()[0]
        leaves = "SELECT pageno FROM dbstat WHERE name = 'registered_models' AND pagetype = 'leaf'"
        pages = [row[0] for row in database.execute(leaves)]
    content = bytearray(path.read_bytes())
    for page in pages:
        content[(page - 1) * size : page * size] = b"\xff" * size
    path.write_bytes(content)
    done = subprocess.run([*warm.lfm(), "models"], env={**os.environ}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "damaged" in done.stderr
