"""lfm/storage/s3.py against a real S3 server, and bad ones (over 300 lines: each call against each of them)."""

import hashlib
import http.client
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from lfm.errors import InputError
from lfm.storage import s3 as storage
from lfm.storage.s3_errors import ENDPOINTS
from tests.s3 import S3, free_ports


@pytest.fixture
def bucket(s3: S3, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A bucket for this test alone."""
    s3.use(monkeypatch)
    name = "t-" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    s3.client().create_bucket(Bucket=name)
    return name


def test_bytes_come_back_and_another_client_sees_them(s3: S3, bucket: str) -> None:
    keys = ["plain", "a/b/c.png", "ä ö/#?%+ &=.txt", "~dots../x", "日本/画像.jpg"]
    for key in keys:
        storage.write(f"s3://{bucket}/{key}", key.encode() * 3)
    for key in keys:
        assert s3.client().get_object(Bucket=bucket, Key=key)["Body"].read() == key.encode() * 3
        assert storage.read(f"s3://{bucket}/{key}") == key.encode() * 3
        assert storage.exists(f"s3://{bucket}/{key}")
    assert not storage.exists(f"s3://{bucket}/plai")
    storage.write(f"s3://{bucket}/plain", b"")
    assert storage.read(f"s3://{bucket}/plain") == b""
    assert not storage.exists("s3://no-such-bucket/x")


def test_listing_is_a_folder_with_sizes_and_etags(s3: S3, bucket: str) -> None:
    content = {"top": b"1", "birds/a": b"22", "birds/z/ä b": b"333", "birds2/c": b"4", "birds.csv": b"5"}
    for key, value in content.items():
        s3.client().put_object(Bucket=bucket, Key=key, Body=value)
    found = storage.listing(f"s3://{bucket}/birds")
    expected = [
        storage.Item(f"s3://{bucket}/{key}", len(content[key]), hashlib.md5(content[key]).hexdigest())
        for key in ("birds/a", "birds/z/ä b")
    ]
    assert found == expected == storage.listing(f"s3://{bucket}/birds/")
    assert [item.uri.removeprefix(f"s3://{bucket}/") for item in storage.listing(f"s3://{bucket}")] == sorted(content)
    assert storage.listing(f"s3://{bucket}/none") == []


def test_listing_reads_all_pages(s3: S3, bucket: str) -> None:
    connection = http.client.HTTPConnection(s3.filer, timeout=10)
    for i in range(3000):
        place = 7919 * i % 3000  # a permutation: not in the order of the names
        connection.request("PUT", f"/buckets/{bucket}/many/{place:04}", b"x" * (place % 3))
        reply = connection.getresponse()
        reply.read()
        assert reply.status == 201
    connection.close()
    found = storage.listing(f"s3://{bucket}/many")
    assert [(item.uri, item.size) for item in found] == [(f"s3://{bucket}/many/{i:04}", i % 3) for i in range(3000)]


def test_files_go_up_and_come_down_whole(s3: S3, bucket: str, tmp_path: Path) -> None:
    content = os.urandom(20 << 20) + b"end"  # several parts of boto3's eight megabytes
    (tmp_path / "big").write_bytes(content)
    storage.upload(tmp_path / "big", f"s3://{bucket}/big")
    assert s3.client().get_object(Bucket=bucket, Key="big")["Body"].read() == content
    target = tmp_path / "new" / "folder" / "copy"
    storage.download(f"s3://{bucket}/big", target)
    assert target.read_bytes() == content
    storage.write(f"s3://{bucket}/big", b"short")
    storage.download(f"s3://{bucket}/big", target)
    assert target.read_bytes() == b"short"
    with pytest.raises(InputError, match="no such bucket or object"):
        storage.download(f"s3://{bucket}/none", target)
    assert target.read_bytes() == b"short", "a failed download leaves the old file"
    assert [path.name for path in target.parent.iterdir()] == ["copy"]


def test_threads_share_the_client(bucket: str) -> None:
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda i: storage.write(f"s3://{bucket}/{i}", str(i).encode()), range(200)))
        assert list(pool.map(lambda i: storage.read(f"s3://{bucket}/{i}"), range(200))) == [
            str(i).encode() for i in range(200)
        ]
    assert len(storage._clients) == 1


def test_a_forked_process_makes_its_own_client(bucket: str) -> None:
    storage.write(f"s3://{bucket}/x", b"parent")
    parents = storage._client()
    child = os.fork()
    if child == 0:
        ok = storage._client() is not parents and storage.read(f"s3://{bucket}/x") == b"parent"
        os._exit(0 if ok else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert storage.read(f"s3://{bucket}/x") == b"parent"


@pytest.mark.parametrize("name", ENDPOINTS)
def test_the_server_is_found_in_any_of_three_variables(
    name: str, s3: S3, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in ENDPOINTS:
        monkeypatch.delenv(other, raising=False)
    later = ENDPOINTS[ENDPOINTS.index(name) + 1 :]
    for other in later:
        monkeypatch.setenv(other, "http://127.0.0.1:1")
    monkeypatch.setenv(name, s3.endpoint)
    storage.write(f"s3://{bucket}/x", name.encode())
    assert s3.client().get_object(Bucket=bucket, Key="x")["Body"].read() == name.encode()


def message(call: str, uri: str, tmp_path: Path) -> str:
    """What the user reads when this call fails."""
    (tmp_path / "file").write_bytes(b"x")
    calls: dict[str, Callable[[], object]] = {
        "read": lambda: storage.read(uri),
        "write": lambda: storage.write(uri, b"x"),
        "upload": lambda: storage.upload(tmp_path / "file", uri),
        "download": lambda: storage.download(uri, tmp_path / "copy"),
        "listing": lambda: storage.listing(uri),
        "exists": lambda: storage.exists(uri),
    }
    with pytest.raises(InputError) as caught:
        calls[call]()
    text = str(caught.value)
    assert "\n" not in text
    assert not (tmp_path / "copy").exists()
    return text


CALLS = ("read", "write", "upload", "download", "listing", "exists")


def test_what_is_not_there_is_named(s3: S3, bucket: str, tmp_path: Path) -> None:
    text = message("read", f"s3://{bucket}/none.png", tmp_path)
    assert text == f"s3://{bucket}/none.png at {s3.endpoint}: there is no such object; check the address"
    for call in ("read", "listing"):
        text = message(call, "s3://no-such-bucket/none", tmp_path)
        assert "s3://no-such-bucket/none" in text
        assert "there is no such bucket; create it" in text


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_secret_is_refused_and_not_shown(
    call: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-hunter2")
    text = message(call, f"s3://{bucket}/x", tmp_path)
    assert "secret key is wrong" in text or "access denied" in text
    assert "AWS_SECRET_ACCESS_KEY" in text
    assert "hunter2" not in text


def test_an_unknown_access_key_is_refused(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    assert "does not know the access key" in message("read", f"s3://{bucket}/x", tmp_path)


def test_no_credentials_at_all(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for call in ("read", "upload"):
        text = message(call, f"s3://{bucket}/x", tmp_path)
        assert "no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in text


@pytest.fixture
def impatient(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a test can wait for."""
    s3.use(monkeypatch)
    monkeypatch.setattr(storage, "CONNECT_SECONDS", 0.3)
    monkeypatch.setattr(storage, "READ_SECONDS", 0.3)
    monkeypatch.setattr(storage, "ATTEMPTS", 2)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("call", CALLS)
def test_a_dead_server_is_named_without_its_password(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    text = message(call, "s3://bucket/x", tmp_path)
    assert f"http://127.0.0.1:{port} does not answer (2 attempts, 0.3 s to connect" in text
    assert "AWS_ENDPOINT_URL" in text
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:hunter2@127.0.0.1:{port}")
    text = message(call, "s3://bucket/x", tmp_path)
    assert f"http://127.0.0.1:{port} does not answer" in text
    assert "hunter2" not in text


@contextmanager
def line(answers: list[bytes]) -> Iterator[str]:
    """A server that gives each connection the next of these answers, then hangs up; b"" is silence."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            held = []
            for answer in answers:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                held.append(connection)
                if answer:
                    connection.recv(65536)
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_RDWR)
                    connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_mute_server_does_not_hang_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with line([b""] * 8) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert f"{endpoint} does not answer" in message("read", "s3://bucket/x", tmp_path)


@pytest.mark.usefixtures("impatient")
def test_a_body_that_breaks_off_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\n"
    with line([head + b"01234", head + b"0123456789"]) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert storage.read("s3://bucket/x") == b"0123456789"
    with line([head + b"01234"] * 2) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert "does not answer" in message("read", "s3://bucket/x", tmp_path)


@pytest.mark.parametrize(
    ("call", "uri"),
    [
        ("read", "s3://"), ("read", "s3://bucket"), ("read", "s3://bucket/"), ("read", "s3:///key"),
        ("write", "/local/file"), ("listing", "s3://"), ("exists", "s3://bucket"), ("upload", "http://bucket/key"),
    ],
)  # fmt: skip
def test_a_malformed_address_is_shown_with_the_right_form(call: str, uri: str, tmp_path: Path) -> None:
    assert f"{uri!r} is not a full S3 address; write it as s3://BUCKET" in message(call, uri, tmp_path)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("endpoint", "uri", "expected"),
    [
        ("localhost:9000", "s3://bucket/x", "'localhost:9000' is not valid; set AWS_ENDPOINT_URL as in http://"),
        ("http://127.0.0.1:1", "s3://my bucket!/x", "is not a valid S3 address"),
    ],
)
def test_a_malformed_server_or_bucket(
    endpoint: str, uri: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert expected in message("read", uri, tmp_path)


def test_only_s3_addresses_are_remote() -> None:
    assert storage.is_remote("s3://bucket/x")
    assert not any(map(storage.is_remote, ("/s3/x", "s3", "x.csv", "http://s3://")))


def own_variables(s3: S3, patch: pytest.MonkeyPatch) -> None:
    """Our own variables lead to the server, those of boto3 astray."""
    patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    patch.setenv("AWS_ACCESS_KEY_ID", "of-the-launcher")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "of-the-launcher-too")
    patch.setenv("AWS_SESSION_TOKEN", "of-the-launcher-as-well")
    patch.setenv("LFM_S3_ENDPOINT_URL", s3.endpoint)
    patch.setenv("LFM_S3_ACCESS_KEY_ID", s3.access_key)
    patch.setenv("LFM_S3_SECRET_ACCESS_KEY", s3.secret_key)
    patch.setenv("LFM_S3_REGION", "us-east-1")


def test_our_own_variables_win_over_those_that_others_read(
    s3: S3, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_variables(s3, monkeypatch)
    storage.write(f"s3://{bucket}/x", b"ours")
    assert storage.read(f"s3://{bucket}/x") == b"ours"
    assert os.environ["AWS_ACCESS_KEY_ID"] == "of-the-launcher", "what other programs read is left alone"
    monkeypatch.setenv("LFM_S3_SECRET_ACCESS_KEY", "wrong")
    text = message("read", f"s3://{bucket}/x", tmp_path)
    assert "LFM_S3_SECRET_ACCESS_KEY" in text and "AWS_" not in text


@pytest.mark.slow
def test_mlflow_writes_to_s3_itself_with_our_own_variables(s3: S3, bucket: str, tmp_path: Path) -> None:
    """Where a tracking server does not pass files on; in a process of its own, whose environment is changed."""
    code = (
        "from lfm.storage.s3 import lend_to_mlflow; lend_to_mlflow()\n"
        "from mlflow.artifacts import download_artifacts\n"
        "from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository\n"
        f"S3ArtifactRepository('s3://{bucket}/run').log_artifact('{tmp_path}/note.txt')\n"
        f"assert open(download_artifacts('s3://{bucket}/run/note.txt')).read() == 'kept'\n"
    )
    (tmp_path / "note.txt").write_text("kept")
    with pytest.MonkeyPatch.context() as patch:
        own_variables(s3, patch)
        subprocess.run(
            [sys.executable, "-c", code], check=True, timeout=120, env={**os.environ, "TMPDIR": str(tmp_path)}
        )
    assert s3.client().get_object(Bucket=bucket, Key="run/note.txt")["Body"].read() == b"kept"
