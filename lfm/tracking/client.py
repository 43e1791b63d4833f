"""A connection to MLflow, and searches that read every page."""

import logging
import os
import socket
import ssl
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from lfm.errors import InputError, PassingError
from lfm.progress import say
from lfm.storage.artifact import home
from lfm.storage.s3 import lend_to_mlflow
from lfm.tracking import database
from lfm.tracking.uri import SQLITE, VARIABLE, host_and_port, server_address, sqlite_file, tracking_uri

CONNECT_SECONDS = 5.0
"""MLflow's own limit is 120, three times over."""
LOG_IN = "log in with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
CERTIFICATE = (
    "name the file of the authority that signed it in MLFLOW_TRACKING_SERVER_CERT_PATH (or REQUESTS_CA_BUNDLE)"
)


def connect() -> MlflowClient:
    """A client of the tracking server and registry.

    Raises:
        InputError: the server does not answer or refuses, or the database is not one that MLflow can use here.
    """
    uri, path = tracking_uri(), sqlite_file()
    if path:
        # It logs pages of SQL about an error that it then raises, as of a full disk.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        try:
            home().mkdir(parents=True, exist_ok=True)
            with FileLock(home() / "mlflow.lock"):  # the first client makes the tables, which two at once cannot
                database.check(path)
                if database.is_missing_elsewhere(path):  # mistyped, perhaps
                    say(f"{VARIABLE} names a file that is not there: a new database is made, {path}")
                return MlflowClient(tracking_uri=uri, registry_uri=uri)
        except OSError as error:
            raise InputError(
                f"cannot write to {home()} ({error.strerror}); set LFM_HOME or --home to a folder"
            ) from error
    # MLflow's own limits keep a client of a dead server waiting for minutes without a word.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    # S3 behind a proxy answers a multipart transfer with addresses that only the server can reach.
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false")
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # once a step
    lend_to_mlflow()
    _knock()
    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    except Exception as error:  # of a database server those of its driver, of which there are many
        if not isinstance(error, MlflowException) and uri.startswith("http"):
            raise
        raise _down(error) from error
    return client


def connect_to_read() -> MlflowClient:
    """A client that changes nothing: also of a home that cannot be written, or was moved or mounted elsewhere.

    A home in which nothing was run yet has no database, and gets none: it is read as an empty one.

    Raises:
        InputError: as `connect`; or MLFLOW_TRACKING_URI names an SQLite file that is not there.
    """
    path = sqlite_file()
    if path is None:
        return connect()
    if database.is_missing_elsewhere(path):
        raise InputError(
            f"{VARIABLE}={tracking_uri()} names a file that is not there, so there is nothing to read; correct the "
            f"path, or unset it to read what is in {home()} (lfm run makes a new database where it is told to)"
        )
    database.check(path)
    readable = database.to_read(path)
    if readable == path:
        return connect()
    return MlflowClient(tracking_uri=f"{SQLITE}{readable}", registry_uri=f"{SQLITE}{readable}")


def _knock() -> None:
    """Find out in seconds that nobody listens, where no proxy stands between.

    Raises:
        PassingError: nobody listens there, or no name server answers.
        InputError: there is no such host.
    """
    place = host_and_port()
    if place is None or (urllib.request.getproxies() and not urllib.request.proxy_bypass(place[0])):
        return
    try:
        socket.create_connection(place, CONNECT_SECONDS).close()
    except OSError as error:
        raise _down(error) from error


def _down(error: Exception) -> InputError:
    text, where = str(error), f"the MLflow server at {server_address()}"
    status = getattr(error, "get_http_status_code", int)()
    if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
        return PassingError(
            f"{where}: no name server knows its name at the moment ({error.strerror}); run again, or correct "
            f"MLFLOW_TRACKING_URI"
        )
    if isinstance(error, socket.gaierror):
        return InputError(f"{where}: there is no host of that name; correct MLFLOW_TRACKING_URI")
    if "CERTIFICATE_VERIFY_FAILED" in text or isinstance(error, ssl.SSLError):
        return InputError(f"{where} has a certificate that this machine does not trust; {CERTIFICATE}")
    if "SSLError" in text or "WRONG_VERSION_NUMBER" in text:
        return InputError(f"{where} does not speak TLS; write http:// in MLFLOW_TRACKING_URI, or correct the port")
    if status in (401, 403):
        return InputError(f"{where} refuses ({status}); {LOG_IN}, and see that its --allowed-hosts name this address")
    if status == 404 or "not in a valid JSON format" in text:
        return InputError(f"{where} answers, but not as MLflow; correct the path and port in MLFLOW_TRACKING_URI")
    kind = PassingError if isinstance(error, OSError) else InputError
    return kind(
        f"{where} does not answer or refuses; start it, correct MLFLOW_TRACKING_URI, or unset it to log to a file"
    )


def every(search: Callable[..., Any], *args: Any, **kwargs: Any) -> Iterator[Any]:
    """All that one of the client's `search_*` functions finds, page after page."""
    token = None
    while True:
        page = search(*args, page_token=token, **kwargs)
        yield from page
        token = page.token
        if not token:
            return


def find_run(client: MlflowClient, tag: str, value: str) -> Run | None:
    """The run with this tag."""
    experiments = [experiment.experiment_id for experiment in every(client.search_experiments)]
    runs = client.search_runs(experiments, f"tags.`{tag}` = '{value}'", max_results=1)
    return runs[0] if runs else None
