"""Where MLflow is, and what is wrong with an address of it; without importing MLflow, which takes a second."""

import os
import re
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from lfm.errors import InputError
from lfm.storage.artifact import home

VARIABLE = "MLFLOW_TRACKING_URI"
USUAL_PORTS = {"http": 80, "https": 443}
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""The usual port of each database server that MLflow can log to directly; SQLite has none."""
SQLITE = "sqlite:///"
_UNSET = "or unset it to log to a file in LFM_HOME"
_HOST_AND_PORT = re.compile(r"[\w.-]+:\d+(/.*)?|\[[0-9a-fA-F:]+\](:\d+)?(/.*)?")


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else an SQLite file in LFM_HOME.

    Raises:
        InputError: MLFLOW_TRACKING_URI is no address that runs can be sent to, or LFM_HOME none of an SQLite file.
    """
    given = os.environ.get(VARIABLE)
    if given:
        if wrong := _what_is_wrong_with(given):
            raise InputError(f"{VARIABLE}={without_password(given)} {wrong}")
        return given
    path = str(home() / "mlflow.db")
    # SQLAlchemy takes what follows a question mark for options, and %20 for a space.
    if "?" in path or unquote(path) != path:
        sign = "?" if "?" in path else "%"
        raise InputError(
            f"MLflow would keep its runs in another place than LFM_HOME={home()}: {sign!r} has a meaning in the "
            f"address of a database; set LFM_HOME or --home to a folder without it"
        )
    return f"{SQLITE}{path}"


def is_server() -> bool:
    """Whether runs go to a server, which may be down."""
    return tracking_uri().startswith("http")


def sqlite_file() -> Path | None:
    """The SQLite file that runs go to, if they go to one."""
    uri = tracking_uri()
    if not uri.startswith(SQLITE):
        return None
    return Path(unquote(uri.removeprefix(SQLITE).partition("?")[0])).absolute()  # as SQLAlchemy reads it


def server_address() -> str:
    """The whole address of the tracking server, without the user and password that its URI may hold.

    The path counts: behind one host and port there may be several servers, each under a prefix of its own.
    """
    address = urlsplit(tracking_uri())
    host = f"[{address.hostname}]" if ":" in str(address.hostname) else address.hostname
    port = "" if address.port in (None, USUAL_PORTS.get(address.scheme)) else f":{address.port}"
    return f"{address.scheme}://{host}{port}{address.path.rstrip('/')}"


def host_and_port() -> tuple[str, int] | None:
    """Where the tracking server or database server listens; None for a file."""
    address = urlsplit(tracking_uri())
    usual = USUAL_PORTS | DATABASE_PORTS
    port = address.port or usual.get(address.scheme.partition("+")[0])
    return (address.hostname, port) if address.hostname and port else None


def _what_is_wrong_with(uri: str) -> str:
    """What hinders runs from being sent there and what to write instead; empty if nothing does."""
    if uri != uri.strip() or uri[0] in "'\"":
        return "has a blank or a quote around it; write the address alone"
    if _HOST_AND_PORT.fullmatch(uri):
        return f"has no scheme; write http://{uri} (or https://)"
    try:
        address = urlsplit(uri)
        possible = address.port != 0  # reading the port checks it
    except ValueError:
        possible = False
    if not possible:
        return f"has a port or host that cannot be; write it as http://HOST:PORT, {_UNSET}"
    scheme = address.scheme.partition("+")[0]
    if scheme in USUAL_PORTS:
        return "" if address.hostname else f"names no host; write {scheme}://HOST:PORT, {_UNSET}"
    if uri.startswith("sqlite"):
        return _what_is_wrong_with_sqlite(address, uri)
    if scheme in DATABASE_PORTS:
        return ""
    if scheme in ("databricks", "databricks-uc", "uc") or uri in ("databricks", "databricks-uc", "uc"):
        return (
            "is a Databricks workspace, whose experiments and models have names of another form; set it to the "
            f"http(s):// address of an MLflow server, {_UNSET}"
        )
    if scheme in ("", "file"):
        return (
            "is a folder, and MLflow 3 logs to no folder any more (`mlflow migrate-filestore` takes what is there "
            f"into a database); set it to sqlite:////FOLDER/mlflow.db or http://HOST:PORT, {_UNSET}"
        )
    return f"begins with {scheme}:, where MLflow keeps no runs; write http://HOST:PORT, {_UNSET}"


def _what_is_wrong_with_sqlite(address: SplitResult, uri: str) -> str:
    if not uri.startswith(SQLITE):
        return f"has too few slashes; write sqlite:////ABSOLUTE/PATH/mlflow.db, {_UNSET}"
    path = uri.removeprefix(SQLITE)
    if path.partition("?")[0] in ("", ":memory:", "/:memory:"):
        return f"is a database in the memory of one process, and each step is another; name a file, {_UNSET}"
    if Path(path).is_dir():
        return f"is a folder; name the file in it, as in {uri.rstrip('/')}/mlflow.db, {_UNSET}"
    return ""


def without_password(uri: str) -> str:
    """An address that may be shown."""
    return re.sub(r"//[^/@]*@", "//", uri)
