"""Files at s3:// addresses. The only file that imports boto3.

The server and the keys come from the environment: AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3, or MLFLOW_S3_ENDPOINT_URL)
for a server other than Amazon's, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or whatever else boto3 finds there.
Variables of our own win over them (`OWN`): in a pod of Kubeflow Pipelines its launcher, which moves artifacts, reads
AWS_* of the step too and would take our keys to its own server (objectstore/object_store.go of KFP 2.17).
"""

import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lfm.errors import InputError

OWN = {
    "LFM_S3_ACCESS_KEY_ID": "AWS_ACCESS_KEY_ID",
    "LFM_S3_SECRET_ACCESS_KEY": "AWS_SECRET_ACCESS_KEY",
    "LFM_S3_SESSION_TOKEN": "AWS_SESSION_TOKEN",
    "LFM_S3_REGION": "AWS_DEFAULT_REGION",
    "LFM_S3_ENDPOINT_URL": "AWS_ENDPOINT_URL",
    "LFM_S3_CA_BUNDLE": "AWS_CA_BUNDLE",
}
"""Variable of our own -> the one that boto3 reads, which it wins over."""
ENDPOINTS = ("LFM_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_S3_ENDPOINT_URL")
CONNECT_SECONDS, READ_SECONDS, ATTEMPTS, CONNECTIONS = 10.0, 60.0, 5, 64
SMALL = 8 << 20
"""Files up to this size go in one request. boto3's transfers, for larger ones, start ten threads for every file."""

# Error codes of S3 -> what is wrong and what to do. A HEAD request is answered by the bare status.
_KEYS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_REFUSED = f"access denied; {_KEYS}, and what they may do with this bucket"
_MEANING = {
    "NoSuchBucket": "there is no such bucket; create it or correct the address",
    "InvalidBucketName": "that is no name for a bucket; correct the address",
    "NoSuchKey": "there is no such object; check the address",
    "404": "there is no such bucket or object; check the address",
    "AccessDenied": _REFUSED,
    "AllAccessDisabled": _REFUSED,
    "403": _REFUSED,
    "SignatureDoesNotMatch": f"the secret key is wrong; {_KEYS}",
    "InvalidAccessKeyId": f"the server does not know the access key; {_KEYS}",
    "InvalidToken": "the session token is not valid; renew AWS_SESSION_TOKEN",
    "ExpiredToken": "the session token has expired; renew AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
    "PermanentRedirect": "the bucket lies in another region; set AWS_DEFAULT_REGION",
    "301": "the bucket lies in another region; set AWS_DEFAULT_REGION",
    "AuthorizationHeaderMalformed": "the bucket lies in another region; set AWS_DEFAULT_REGION",
}

_clients: dict[tuple[Any, ...], Any] = {}
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
    from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError

    bucket, key = _split(uri)
    with _plain(uri):
        for attempt in range(ATTEMPTS):
            try:
                body: bytes = _client().get_object(Bucket=bucket, Key=key)["Body"].read()
                return body
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
    with _plain(uri):
        _client().put_object(Bucket=bucket, Key=key, Body=content)


def upload(path: Path, uri: str) -> None:
    """Copy a file to an object without holding much of it in memory.

    Raises:
        InputError: as `read`, or the object's size is not the file's.
        OSError: the file cannot be read.
    """
    bucket, key = _split(uri)
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
            if _code(error) in ("404", "NoSuchKey", "NoSuchBucket"):
                return False
            raise
    return True


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


def _endpoint() -> str | None:
    return next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), None)


def _client() -> Any:
    """The process's one client; a new one after a fork (connections must not be shared) or in another environment."""
    aws = tuple(sorted(item for item in os.environ.items() if item[0].startswith(("AWS_", "LFM_S3_"))))
    key = (os.getpid(), _endpoint(), CONNECT_SECONDS, READ_SECONDS, ATTEMPTS, aws)
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
    session = boto3.session.Session(key, secret, token, region)
    return session.client("s3", endpoint_url=_endpoint(), verify=ca, config=config)


def _named(text: str) -> str:
    """The text with our own variable in place of boto3's where ours is set."""
    for ours, theirs in OWN.items():
        text = text.replace(theirs, ours) if os.environ.get(ours) else text
    return text


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _server() -> str:
    """The server in words, without a password that its address may hold."""
    endpoint = _endpoint()
    if endpoint is None:
        return "Amazon S3"
    scheme, mark, rest = endpoint.rpartition("://")
    return scheme + mark + rest.partition("/")[0].rpartition("@")[2]


@contextmanager
def _plain(uri: str) -> Iterator[None]:
    """Turn boto3's errors into one line with the fix. It quotes no text of the server: that may hold secrets."""
    from boto3.exceptions import RetriesExceededError
    from botocore import exceptions as boto

    try:
        yield
    except boto.ClientError as error:
        code = _code(error)
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "?")
        meaning = _MEANING.get(code, f"the server answered {code or 'an error'} (HTTP {status}); try again later")
        raise InputError(f"{uri} at {_server()}: {_named(meaning)}") from error
    except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError) as error:
        keys = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or LFM_S3_... of both)"
        raise InputError(f"{uri}: there are no S3 credentials; set {keys}") from error
    except boto.ParamValidationError as error:
        raise InputError(f"{uri!r} is not a valid S3 address; write it as s3://BUCKET/KEY") from error
    except (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError, RetriesExceededError) as error:
        raise InputError(
            f"{uri}: {_server()} does not answer ({ATTEMPTS} attempts, {CONNECT_SECONDS:g} s to connect and "
            f"{READ_SECONDS:g} s to read); start it, or set {_named('AWS_ENDPOINT_URL')} to where it is"
        ) from error
    except boto.BotoCoreError as error:
        raise InputError(
            f"{uri}: boto3 stopped with {type(error).__name__}; check the AWS_ and LFM_S3_ variables"
        ) from error
    except ValueError as error:
        if "Invalid endpoint" not in str(error):
            raise
        raise InputError(
            f"the S3 server's address {_server()!r} is not valid; set {_named('AWS_ENDPOINT_URL')} as in "
            "http://localhost:9000"
        ) from error
