"""A connection to MLflow, and searches that read every page."""

import os
from collections.abc import Callable, Iterator
from typing import Any

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from lfm.errors import InputError
from lfm.storage.artifact import home
from lfm.storage.s3 import lend_to_mlflow
from lfm.tracking.uri import server_address, tracking_uri


def connect() -> MlflowClient:
    """A client of the tracking server and registry.

    Raises:
        InputError: the server does not answer or refuses.
    """
    uri = tracking_uri()
    if uri.startswith("sqlite"):
        try:
            home().mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot write to {home()} ({error.strerror}); set LFM_HOME or --home to a folder"
            ) from error
        with FileLock(home() / "mlflow.lock"):  # the first client makes the tables, which two at once cannot
            return MlflowClient(tracking_uri=uri, registry_uri=uri)
    # MLflow's own limits keep a client of a dead server waiting for minutes without a word.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    # S3 behind a proxy answers a multipart transfer with addresses that only the server can reach.
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false")
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # once a step
    lend_to_mlflow()
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    try:
        client.search_experiments(max_results=1)
    except MlflowException as error:
        raise _down() from error
    return client


def _down() -> InputError:
    return InputError(
        f"the MLflow server at {server_address()} does not answer or refuses; "
        f"start it, correct MLFLOW_TRACKING_URI, or unset it to log to a file"
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
