"""The team's servers: infra/compose.yaml by its schema, and started for real with infra/up.sh.

No registry can be reached here, so PostgreSQL and SeaweedFS run in images made from Debian's package and the wheel;
the compose file, the passwords, the users, mounts and health checks, and the MLflow image are the real ones.
"""

import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compose_spec
import docker
import mlflow
import pytest
import yaml
from mlflow.exceptions import MlflowException

from tests.containers import ROOT, base_image, build, missing

POSTGRES = """
ARG BASE
FROM $BASE
RUN apt-get -qq update && apt-get -qq install --yes --no-install-recommends postgresql >/dev/null 2>&1 \
    && usermod --uid 999 postgres && groupmod --gid 999 postgres \
    && install -d -o 999 -g 999 /var/lib/postgresql/data /var/run/postgresql
ENV PATH=/usr/lib/postgresql/15/bin:$PATH
COPY start.sh /start.sh
CMD ["sh", "/start.sh"]
"""
START = """
set -eu
if [ ! -e "$PGDATA/PG_VERSION" ]; then
  echo "$POSTGRES_PASSWORD" >/tmp/password
  initdb -D "$PGDATA" -U "$POSTGRES_USER" --pwfile=/tmp/password --encoding=UTF8 \\
    --auth-local=trust --auth-host=scram-sha-256 >/dev/null
  postgres -D "$PGDATA" -c listen_addresses= & sleep 3
  createdb -U "$POSTGRES_USER" "$POSTGRES_DB" || test "$POSTGRES_DB" = "$POSTGRES_USER"
  kill -INT $! && wait $! || true
  echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
fi
exec postgres -D "$PGDATA" -c "listen_addresses=*"
"""
SEAWEEDFS = """
ARG BASE
FROM $BASE
RUN apt-get -qq update && apt-get -qq install --yes --no-install-recommends busybox >/dev/null 2>&1 \
    && ln -s /bin/busybox /usr/bin/wget && mkdir /data
COPY weed /usr/bin/weed
"""


def interpolated(text: str) -> dict[str, Any]:
    """The compose file with its variables' defaults."""
    plain = re.sub(r"\$\{(\w+):([-?])([^}]*)\}", lambda m: m[3] if m[2] == "-" else "lfm-mlflow:x", text)
    return dict(yaml.safe_load(plain))


def check(document: dict[str, Any]) -> None:
    compose_spec.PyCompose.from_yaml(yaml.safe_dump(document)).validate()


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return interpolated((ROOT / "infra/compose.yaml").read_text())


def test_the_compose_file_fits_the_specification(document: dict[str, Any]) -> None:
    check(document)
    document = yaml.safe_load(yaml.safe_dump(document))
    document["services"]["mlflow"]["readonly"] = True
    with pytest.raises(ValueError, match="readonly"):
        check(document)


def test_only_loopback_is_published_and_every_server_is_shut_in(document: dict[str, Any]) -> None:
    for name, service in document["services"].items():
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert "healthcheck" in service or name in ("mlflow", "buckets"), name
        assert not re.search(r"password|secret_key", yaml.safe_dump(service.get("environment", {})), re.IGNORECASE)
    assert "ports" not in document["services"]["postgres"] and document["networks"]["inside"] == {"internal": True}


def stand_in(name: str, dockerfile: str, folder: Path, base: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "Dockerfile").write_text(dockerfile)
    command = ["docker", "build", "--quiet", "--build-arg", f"BASE={base}", "--tag", name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return name


@pytest.fixture(scope="module")
def servers(
    daemon: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[str, str]]]:
    """A copy of infra/ whose servers run, and the variables it runs with."""
    assert daemon.ping()
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=60)
    if plugin.returncode and not shutil.which("docker-compose"):
        missing("docker compose")
    if not base_image():
        missing("a base image for stand-ins, which root makes with infra/docker/base.sh")
    base = base_image()["BASE_IMAGE"]
    folder = tmp_path_factory.mktemp("servers")
    (folder / "postgres").mkdir()
    (folder / "postgres/start.sh").write_text(START)
    (folder / "seaweedfs").mkdir()
    shutil.copy(Path(sys.executable).with_name("weed"), folder / "seaweedfs/weed")
    infra = folder / "infra"
    shutil.copytree(ROOT / "infra", infra, ignore=shutil.ignore_patterns("secrets"))
    variables = {
        "POSTGRES_IMAGE": stand_in("lfm-test-postgres:1", POSTGRES, folder / "postgres", base),
        "SEAWEEDFS_IMAGE": stand_in("lfm-test-seaweedfs:1", SEAWEEDFS, folder / "seaweedfs", base),
        "MLFLOW_IMAGE": build(ROOT, "mlflow").image,
        "MLFLOW_PORT": "0",  # any that is free
        "S3_PORT": "0",
        "COMPOSE_PROJECT_NAME": f"lfm-test-{uuid.uuid4().hex[:6]}",
    }
    try:
        yield infra, {**os.environ, **variables}
    finally:
        up(infra, {**os.environ, **variables}, "down", "--volumes", "--timeout", "5")


def up(infra: Path, variables: dict[str, str], *arguments: str) -> str:
    done = subprocess.run([infra / "up.sh", *arguments], env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def log_in(infra: Path, url: str, patch: pytest.MonkeyPatch) -> None:
    for line in (infra / "secrets/clients.env").read_text().splitlines():
        patch.setenv(*line.split("=", 1))
    patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    patch.setenv("MLFLOW_TRACKING_URI", url)


@pytest.mark.containers
@pytest.mark.slow
def test_the_servers_start_want_a_password_and_keep_runs_and_artifacts(
    servers: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infra, variables = servers
    url = re.findall(r"MLflow answers at (http://127\.0\.0\.1:\d+)", up(infra, variables))[0]
    search = f"{url}/api/2.0/mlflow/experiments/search?max_results=1"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(search, timeout=30)
    assert refused.value.code == 401
    log_in(infra, url, monkeypatch)
    (tmp_path / "report.html").write_text("<p>kept</p>")
    client = mlflow.MlflowClient(url)
    experiment = client.create_experiment("team")
    assert client.get_experiment(experiment).artifact_location.startswith("mlflow-artifacts:")
    run = client.create_run(experiment).info.run_id
    client.log_metric(run, "test/all", 81.5)
    client.log_artifact(run, str(tmp_path / "report.html"))  # through the server: no S3 key here
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another-password")
    with pytest.raises(MlflowException, match="401"):
        mlflow.MlflowClient(url).search_experiments()

    up(infra, variables, "down", "--timeout", "5")
    url = re.findall(r"MLflow answers at (http://127\.0\.0\.1:\d+)", up(infra, variables))[0]
    log_in(infra, url, monkeypatch)
    client = mlflow.MlflowClient(url)
    assert client.get_run(run).data.metrics == {"test/all": 81.5}
    assert Path(client.download_artifacts(run, "report.html", str(tmp_path))).read_text() == "<p>kept</p>"
    # A page of another site that names this machine (DNS rebinding) is turned away even with the password.
    user, password = (os.environ[f"MLFLOW_TRACKING_{name}"] for name in ("USERNAME", "PASSWORD"))
    headers = {
        "Host": "elsewhere.example",
        "Authorization": "Basic " + b64encode(f"{user}:{password}".encode()).decode(),
    }
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(
            urllib.request.Request(search.replace(search[: search.index("/api")], url), headers=headers)
        )
    assert refused.value.code == 403
