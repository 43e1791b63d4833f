"""Where MLflow is; without importing it, which takes a second."""

import os
from urllib.parse import urlsplit

from lfm.storage.artifact import home


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else an SQLite file in LFM_HOME."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def is_server() -> bool:
    """Whether runs go to a server, which may be down."""
    return tracking_uri().startswith("http")


def server_address() -> str:
    """HOST:PORT of the tracking server, without the user and password that its URI may hold."""
    address = urlsplit(tracking_uri())
    return f"{address.hostname}:{address.port}" if address.port else str(address.hostname)
