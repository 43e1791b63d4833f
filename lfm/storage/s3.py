"""Files at s3:// addresses. The only file that imports boto3; its errors are in `s3_errors`.

The server and the keys come from the environment: AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3, or MLFLOW_S3_ENDPOINT_URL)
for a server other than Amazon's, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or whatever else boto3 finds there.
Variables of our own win over them (`OWN`): in a pod of Kubeflow Pipelines its launcher, which moves artifacts, reads
AWS_* of the step too and would take our keys to its own server (objectstore/object_store.go of KFP 2.17).
"""

import os
import threading
import uuid
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from lfm.errors import InputError
from lfm.storage.s3_errors import OWN, code_of, endpoint, one_line_errors, server

CONNECT_SECONDS, READ_SECONDS, ATTEMPTS, CONNECTIONS = 10.0, 60.0, 5, 64
SMALL = 8 << 20
"""Files up to this size go in one request. boto3's transfers, for larger ones, start ten threads for every file."""

_clients: dict[tuple[Any, ...], Any] = {}
_buckets: set[tuple[str | None, str]] = set()
"""Server and name of the buckets that are known to be there."""
_lock = threading.Lock()


class Item(NamedTuple):
    """An object in a listing."""

    uri: str
    size: int
    etag: str


def is_remote(uri: str) -> bool:
    """Whether the path is an s3:// address."""
    return uri.startswith("s3://")


def read(uri: str) -> bytes:
    """The bytes of an object. From any thread.

    Raises:
        InputError: no such object or bucket, access denied, no credentials, or no answer.
    """
    return read_stamped(uri)[0]


def read_stamped(uri: str) -> tuple[bytes, str]:
    """The bytes of an object, and its size and ETag as `listing` has them; nothing if the server sends none.

    Raises:
        InputError: as `read`.
    """
    from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError

    bucket, key = _split(uri)
    with _plain(uri):
        for attempt in range(ATTEMPTS):
            try:
                found = _client().get_object(Bucket=bucket, Key=key)
                body: bytes = found["Body"].read()
                etag = found.get("ETag", "").strip('"')
                return body, f"{len(body)} {etag}" if etag else ""
            except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
                if attempt == ATTEMPTS - 1:  # boto3 repeats the request, but not a body that breaks off
                    raise
    raise AssertionError("unreachable")


def write(uri: str, content: bytes) -> None:
    """Make an object of these bytes, or replace it: readers see the old bytes or the new, never a part.

    Raises:
        InputError: as `read`.
    """
    bucket, key = _split(uri)
    check_bucket(uri)
    with _plain(uri):
        _client().put_object(Bucket=bucket, Key=key, Body=content)


def upload(path: Path, uri: str) -> None:
    """Copy a file to an object without holding much of it in memory.

    Raises:
        InputError: as `read`, or the object's size is not the file's.
        OSError: the file cannot be read.
    """
    bucket, key = _split(uri)
    check_bucket(uri)
    with path.open("rb") as file, _plain(uri):
        if path.stat().st_size <= SMALL:
            _client().put_object(Bucket=bucket, Key=key, Body=file)
            return
        _client().upload_fileobj(file, bucket, key)
        size = int(_client().head_object(Bucket=bucket, Key=key)["ContentLength"])
    if size != path.stat().st_size:
        raise InputError(f"{uri} has {size:,} bytes after the upload, {path} has {path.stat().st_size:,}; run again")


def download(uri: str, path: Path) -> None:
    """Copy an object to a file without holding much of it in memory; the file is complete or absent.

    Raises:
        InputError: as `read`, or the file's size is not the object's.
        OSError: the file cannot be written.
    """
    bucket, key = _split(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with _plain(uri):
            size = int(_client().head_object(Bucket=bucket, Key=key)["ContentLength"])
            if size <= SMALL:
                aside.write_bytes(read(uri))
            else:
                _client().download_file(bucket, key, str(aside))
        if aside.stat().st_size != size:
            raise InputError(f"{uri} has {size:,} bytes but {aside.stat().st_size:,} arrived; run again")
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)


def delete(prefix_uri: str) -> None:
    """Remove all objects in a folder and the folders in it.

    Raises:
        InputError: as `read`.
    """
    items = listing(prefix_uri)
    with _plain(prefix_uri):
        for item in items:
            bucket, key = _split(item.uri)
            _client().delete_object(Bucket=bucket, Key=key)


def listing(prefix_uri: str) -> list[Item]:
    """All objects in a folder and the folders in it, sorted by address; empty where there are none.

    Args:
        prefix_uri: s3://bucket or s3://bucket/folder; `folder` does not match `folder2/`.

    Raises:
        InputError: no such bucket, access denied, no credentials, or no answer.
    """
    bucket, prefix = _split(prefix_uri, key_needed=False)
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    with _plain(prefix_uri):
        pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return sorted(
            Item(f"s3://{bucket}/{entry['Key']}", int(entry["Size"]), entry["ETag"].strip('"'))
            for page in pages
            for entry in page.get("Contents", ())
            if not entry["Key"].endswith("/")  # some tools mark a folder with an empty object
        )


def exists(uri: str) -> bool:
    """Whether there is such an object; a bucket that does not exist has none.

    Raises:
        InputError: access denied, no credentials, or no answer.
    """
    from botocore.exceptions import ClientError

    bucket, key = _split(uri)
    with _plain(uri):
        try:
            _client().head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if code_of(error) in ("404", "NoSuchKey", "NoSuchBucket"):
                return False
            raise
    return True


def check_bucket(uri: str) -> None:
    """Check that there is such a bucket, once for each: some servers make one of any name that is written to.

    Raises:
        InputError: no such bucket, no credentials, or no answer. Who may write and not look is not refused.
    """
    from botocore.exceptions import ClientError

    bucket, _ = _split(uri, key_needed=False)
    seen = endpoint(), bucket
    if seen in _buckets:
        return
    with _plain(uri):
        try:
            _client().head_bucket(Bucket=bucket)
        except ClientError as error:
            if code_of(error) in ("404", "NoSuchBucket"):
                raise InputError(
                    f"{uri} at {server()}: there is no bucket {bucket!r}; correct the address, or create it"
                ) from error
            if code_of(error) not in ("403", "AccessDenied"):
                raise
            return
    _buckets.add(seen)


def _split(uri: str, key_needed: bool = True) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not is_remote(uri) or not bucket or (key_needed and not key):
        form = "s3://BUCKET/KEY" if key_needed else "s3://BUCKET or s3://BUCKET/FOLDER"
        raise InputError(f"{uri!r} is not a full S3 address; write it as {form}")
    return bucket, key


def lend_to_mlflow() -> None:
    """Set boto3's variables to ours in this process: MLflow's client may have to write files to S3 itself."""
    if os.environ.get("LFM_S3_ACCESS_KEY_ID"):
        os.environ.pop("AWS_SESSION_TOKEN", None)  # of another key
    os.environ.update({theirs: os.environ[ours] for ours, theirs in OWN.items() if os.environ.get(ours)})
    if os.environ.get("LFM_S3_ENDPOINT_URL"):
        os.environ["MLFLOW_S3_ENDPOINT_URL"] = os.environ["LFM_S3_ENDPOINT_URL"]


def _client() -> Any:
    """The process's one client; a new one after a fork (connections must not be shared) or in another environment."""
    aws = tuple(sorted(item for item in os.environ.items() if item[0].startswith(("AWS_", "LFM_S3_"))))
    key = (os.getpid(), endpoint(), CONNECT_SECONDS, READ_SECONDS, ATTEMPTS, aws)
    with _lock:
        if key not in _clients:
            _clients.clear()
            _clients[key] = _make_client()
        return _clients[key]


def _make_client() -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        max_pool_connections=CONNECTIONS,
        retries={"mode": "standard", "max_attempts": ATTEMPTS},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        # Many S3 servers other than Amazon's do not know the checksums that boto3 adds by default.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    key, secret, token, region, _, ca = (os.environ.get(name) or None for name in OWN)
    for variable in ("LFM_S3_CA_BUNDLE", "AWS_CA_BUNDLE"):
        if (bundle := os.environ.get(variable)) and not Path(bundle).exists():
            raise InputError(f"{variable} names no file: {bundle}; correct or unset it")
    session = boto3.session.Session(key, secret, token, region)
    return session.client("s3", endpoint_url=endpoint(), verify=ca, config=config)


def _plain(uri: str) -> AbstractContextManager[None]:
    return one_line_errors(uri, f"{ATTEMPTS} attempts, {CONNECT_SECONDS:g} s to connect and {READ_SECONDS:g} s to read")
