"""Where MLflow is; without importing it, which takes a second."""

import os
from urllib.parse import urlsplit

from lfm.storage.artifact import home

USUAL_PORTS = {"http": 80, "https": 443}


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else an SQLite file in LFM_HOME."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def is_server() -> bool:
    """Whether runs go to a server, which may be down."""
    return tracking_uri().startswith("http")


def server_address() -> str:
    """The whole address of the tracking server, without the user and password that its URI may hold.

    The path counts: behind one host and port there may be several servers, each under a prefix of its own.
    """
    address = urlsplit(tracking_uri())
    host = f"[{address.hostname}]" if ":" in str(address.hostname) else address.hostname
    port = "" if address.port in (None, USUAL_PORTS.get(address.scheme)) else f":{address.port}"
    return f"{address.scheme}://{host}{port}{address.path.rstrip('/')}"
