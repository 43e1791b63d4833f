"""MLflow's SQLite file: whether the MLflow here can use it, and where it says that artifacts are.

MLflow itself migrates a database of an older version as soon as it looks into it, for good and without a word, so ours
is looked at before MLflow opens it. It also keeps the whole paths of artifacts: after LFM_HOME was moved or mounted
elsewhere, they name folders that are not there.
"""

import functools
import os
import re
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from lfm.errors import InputError
from lfm.progress import say
from lfm.storage.artifact import home
from lfm.tracking.uri import SQLITE, VARIABLE, sqlite_file

BUSY_SECONDS = 20.0
"""MLflow waits as long for another process that writes."""
ARTIFACTS = "mlartifacts"
"""Folder in LFM_HOME that MLflow keeps artifacts in, where runs go to an SQLite file."""
PATHS = (
    ("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"),
    ("model_versions", "source"), ("model_versions", "storage_location"),
)  # fmt: skip
"""Tables and columns of MLflow 3.17 that hold paths of artifacts."""
_MARK = "alembic_version"


def check(path: Path) -> None:
    """Check that the MLflow here can use a database file as it is; one that is not there is made later.

    Raises:
        InputError: It is damaged, of another version of MLflow, or no database of MLflow's.
    """
    if not path.exists() or not path.stat().st_size:
        return
    try:
        with closing(open_to_read(path)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            found = database.execute("SELECT version_num FROM alembic_version").fetchone() if _MARK in tables else None
            # MLflow, killed while it made the tables, goes on with that.
            if not tables or (_begun_only(database, tables) and (not found or found[0] in schemas())):
                return
    except sqlite3.DatabaseError as error:
        raise unusable(path, str(error)) from error
    if found and found[0] == _newest():
        return
    raise InputError(_other_version(path, found[0] if found else "", "experiments" in tables))


def is_missing_elsewhere(path: Path) -> bool:
    """Whether a database file that is not the one of LFM_HOME is not there."""
    return not path.exists() and path != (home() / "mlflow.db").absolute()


def _begun_only(database: sqlite3.Connection, tables: set[str]) -> bool:
    """Whether a database is MLflow's and holds nothing yet but the experiment that MLflow makes itself."""
    if not {"experiments", "runs"} <= tables:
        return False
    rows = sum(
        database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608  names of ours
        for table in ("runs", "registered_models")
        if table in tables
    )
    return not rows and int(database.execute("SELECT count(*) FROM experiments").fetchone()[0]) <= 1


def _other_version(path: Path, schema: str, by_mlflow: bool) -> str:
    import mlflow

    if not by_mlflow:
        return (
            f"{path} is a database of another program; move it, or set {VARIABLE} to another file or an MLflow server"
        )
    ours = f"MLflow {mlflow.__version__} has {_newest()} of {schemas()[_newest()]}"
    if schema and schema not in schemas():
        return (
            f"{path} was written by another or newer MLflow (schema {schema}, which is unknown here; {ours}); use the "
            f"MLflow that wrote it, or set LFM_HOME or {VARIABLE} to another place"
        )
    of = f"schema {schema} of {schemas()[schema]}" if schema else "a schema without a number"
    return (
        f"{path} was written by an older MLflow ({of}; {ours}), which could not open it again once it is migrated: "
        f"copy the file, then mlflow db upgrade {SQLITE}{path}"
    )


@functools.cache
def schemas() -> dict[str, str]:
    """The versions of the schema that the MLflow here knows, the newest first, with the date of each."""
    from importlib.resources import files

    from alembic.script import ScriptDirectory

    found = {}
    for script in ScriptDirectory(str(files("mlflow.store.db_migrations"))).walk_revisions():
        date = re.search(r"Create Date:\s*(\S+)", script.module.__doc__ or "")
        found[script.revision] = date[1] if date else "unknown date"
    return found


def _newest() -> str:
    """The version that the MLflow here writes."""
    return next(iter(schemas()))


def unusable(path: Path, error: str) -> InputError:
    """What to do about a database file, by SQLite's words on it.

    Args:
        path: Database file.
        error: What SQLite says.
    """
    if "locked" in error:
        return InputError(
            f"{path} is locked by another process for more than {BUSY_SECONDS:.0f} s; wait for it or end it"
        )
    return InputError(
        f"{path} is damaged or cannot be read ({error}); put a copy of it back, or move it away: then MLflow begins "
        f"from nothing, while models and data in {home() / 'store'} stay"
    )


def open_to_read(path: Path) -> sqlite3.Connection:
    """A connection to read with; also on a disk that cannot be written.

    One who may write opens it so all the same: what a killed process left half written is taken back by SQLite then.
    """
    ways = ["mode=rw" if _writable(path) else "mode=ro"]
    ways.append("mode=ro&immutable=1")  # without the right to make a lock next to it, it can be read as unchanging
    for options in ways:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?{options}", uri=True, timeout=BUSY_SECONDS)
        try:
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.DatabaseError as error:
            database.close()
            beside = isinstance(error, sqlite3.OperationalError) and "locked" not in str(error)
            if options == ways[-1] or not beside or _writable(path):
                raise
        else:
            return database
    raise AssertionError("unreachable")


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def moved_from(path: Path) -> list[str]:
    """Addresses of folders of artifacts in which this home's are said to be, and are not: it was moved.

    Args:
        path: Database file. Only that of LFM_HOME has artifacts in a folder of ours.
    """
    here = home() / ARTIFACTS
    if path != home() / "mlflow.db" or not path.is_file():
        return []
    with closing(open_to_read(path)) as database:
        try:
            rows = database.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        except sqlite3.OperationalError:  # no tables yet
            return []
    said = {str(uri) for (uri,) in rows if str(uri).startswith("file:") and str(uri).endswith(f"/{ARTIFACTS}")}
    return sorted(uri for uri in said if uri != here.as_uri() and not _is_same(uri, here))


def _is_same(uri: str, folder: Path) -> bool:
    there = Path(unquote(urlsplit(uri).path))
    try:
        return there.samefile(folder)
    except OSError:
        return False


def adopt_home() -> None:
    """Make the database name the artifacts where they are now; what LFM_HOME was moved from is said.

    For commands that write: a run of a moved home would put its artifacts into the old place.
    """
    path = sqlite_file()
    if path is None:
        return
    with FileLock(home() / "mlflow.lock"):
        if moved := moved_from(path):
            with closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as database:
                _rewrite(database, moved)
            was = moved[0].removeprefix("file://").removesuffix(f"/{ARTIFACTS}")
            say(f"LFM_HOME was at {was}; what MLflow keeps of it is found here now")


def _rewrite(database: sqlite3.Connection, moved: list[str]) -> None:
    """Put the folder of artifacts that is here in place of those, in one transaction."""
    here = (home() / ARTIFACTS).as_uri()
    with database:
        for table, column in PATHS:
            for old in moved:
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608  names of ours
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (here, len(old) + 1, old, len(old) + 1, f"{old}/"),
                )


def to_read(path: Path) -> Path:
    """A database file that can be opened and names artifacts where they are: this one, or else a copy of it.

    A home that was moved, mounted elsewhere or that cannot be written is read without being changed: the one who
    writes to it may see it in another place. Of a file that is not there yet the copy is
    empty, and MLflow makes its tables in it. A copy lasts as long as this process.
    """
    moved, there = moved_from(path), path.exists()
    if there and not moved and _writable(path):
        return path
    key = path, path.stat().st_mtime_ns if there else 0, tuple(moved)
    if key not in _copies:
        _copies[key] = tempfile.TemporaryDirectory(prefix="lfm-mlflow-")
        if there:
            copy = Path(_copies[key].name) / path.name
            with closing(open_to_read(path)) as old, closing(sqlite3.connect(copy)) as new:
                old.backup(new)
                _rewrite(new, moved)
    return Path(_copies[key].name) / path.name


_copies: dict[tuple[Path, int, tuple[str, ...]], "tempfile.TemporaryDirectory[str]"] = {}
