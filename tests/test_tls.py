"""Servers with a certificate that this machine does not trust: said as that, and mended by the variable it names."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from lfm.errors import InputError
from lfm.pipelines.kfp_client import Cluster
from lfm.storage import s3 as storage
from lfm.tracking.client import connect
from tests.kfp_server import serve_kfp
from tests.s3 import S3
from tests.test_sync import prefix as prefix
from tests.tls import in_front_of, make_certificate

pytestmark = pytest.mark.slow
VARIABLES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "AWS_CA_BUNDLE", "LFM_S3_CA_BUNDLE", "CURL_CA_BUNDLE")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(autouse=True)
def _no_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def port_of(address: str) -> int:
    port = urlsplit(address).port
    assert port
    return port


def variable_in(refused: "pytest.ExceptionInfo[InputError]") -> str:
    """The variable that the error says to set."""
    (first, *_) = re.findall(r"in ([A-Z0-9_]+)", str(refused.value))
    return str(first)


def test_s3(certificate: tuple[Path, Path], s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.use(monkeypatch)
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    with in_front_of(port_of(s3.endpoint), *certificate) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        with pytest.raises(InputError, match="is not one that this machine trusts") as refused:
            storage.listing("s3://ready")
        monkeypatch.setenv(variable_in(refused), str(certificate[0]))
        assert storage.read("s3://ready/probe") == b"probe"
        monkeypatch.setenv("AWS_CA_BUNDLE", "/nowhere/ca.pem")
        with pytest.raises(InputError, match=r"AWS_CA_BUNDLE names no file: /nowhere/ca\.pem"):
            storage.listing("s3://ready")
    monkeypatch.delenv("AWS_CA_BUNDLE")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint.replace("http:", "https:"))
    with pytest.raises(InputError, match="does not speak TLS; write http:// in AWS_ENDPOINT_URL"):
        storage.listing("s3://ready")


def test_kfp(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with serve_kfp() as kfp, in_front_of(port_of(kfp.host), *certificate) as address:
        with pytest.raises(InputError, match="has a certificate that this machine does not trust") as refused:
            Cluster(address)
        monkeypatch.setenv(variable_in(refused), str(certificate[0]))
        kfp.multi_user = True
        with pytest.raises(InputError, match=r"has several users: name your namespace with --namespace"):
            Cluster(address)
        Cluster(address, "team-a")
        with pytest.raises(InputError, match="does not speak TLS: write http://"):
            Cluster(kfp.host.replace("http:", "https:"))


def test_mlflow(certificate: tuple[Path, Path], prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with in_front_of(port_of(prefix), *certificate) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{address}/b")
        with pytest.raises(InputError, match="has a certificate that this machine does not trust") as refused:
            connect()
        monkeypatch.setenv(variable_in(refused), str(certificate[0]))
        assert connect().search_experiments()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(InputError, match="answers, but not as MLflow; correct the path and port"):
            connect()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{prefix.replace('http:', 'https:')}/b")
    with pytest.raises(InputError, match="does not speak TLS; write http:// in MLFLOW_TRACKING_URI"):
        connect()
