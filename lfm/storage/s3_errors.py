"""What boto3 says is wrong, in one line with the fix; and which server is meant, and by which variables."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
    "PermanentRedirect": "the bucket is in another region; set AWS_DEFAULT_REGION",
    "301": "the bucket is in another region; set AWS_DEFAULT_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region; set AWS_DEFAULT_REGION",
}


def endpoint() -> str | None:
    """Address of the server; None: Amazon's."""
    return next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), None)


def _named(text: str) -> str:
    """The text with our own variable in place of boto3's where ours is set."""
    for ours, theirs in OWN.items():
        text = text.replace(theirs, ours) if os.environ.get(ours) else text
    return text


def code_of(error: Any) -> str:
    """S3's code of a refusal."""
    return str(error.response.get("Error", {}).get("Code", ""))


def server() -> str:
    """The server in words, without a password that its address may hold."""
    address = endpoint()
    if address is None:
        return "Amazon S3"
    scheme, mark, rest = address.rpartition("://")
    return scheme + mark + rest.partition("/")[0].rpartition("@")[2]


@contextmanager
def one_line_errors(uri: str, patience: str) -> Iterator[None]:
    """Turn boto3's errors into one line with the fix. It quotes no text of the server: that may hold secrets.

    Args:
        uri: what was asked for.
        patience: how long an answer was waited for, in words.
    """
    from boto3.exceptions import RetriesExceededError  # noqa: TID251  no client is made here
    from botocore import exceptions as boto

    try:
        yield
    except boto.ClientError as error:
        code = code_of(error)
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "?")
        meaning = _MEANING.get(code, f"the server answered {code or 'an error'} (HTTP {status}); try again later")
        raise InputError(f"{uri} at {server()}: {_named(meaning)}") from error
    except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError) as error:
        keys = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or LFM_S3_... of both)"
        raise InputError(f"{uri}: there are no S3 credentials; set {keys}") from error
    except boto.ParamValidationError as error:
        raise InputError(f"{uri!r} is not a valid S3 address; write it as s3://BUCKET/KEY") from error
    except boto.SSLError as error:
        plain = "WRONG_VERSION_NUMBER" in str(error) or "record layer" in str(error)
        raise InputError(
            f"{uri}: {server()} does not speak TLS; write http:// in {_named('AWS_ENDPOINT_URL')}"
            if plain
            else f"{uri}: the certificate of {server()} is not one that this machine trusts; name the file of the "
            f"authority that signed it in {_named('AWS_CA_BUNDLE')} (or LFM_S3_CA_BUNDLE)"
        ) from error
    except (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError, RetriesExceededError) as error:
        raise InputError(
            f"{uri}: {server()} does not answer ({patience}); start it, or set "
            f"{_named('AWS_ENDPOINT_URL')} to where it is"
        ) from error
    except boto.BotoCoreError as error:
        raise InputError(
            f"{uri}: boto3 stopped with {type(error).__name__}; check the AWS_ and LFM_S3_ variables"
        ) from error
    except ValueError as error:
        if "Invalid endpoint" not in str(error):
            raise
        raise InputError(
            f"the S3 server's address {server()!r} is not valid; set {_named('AWS_ENDPOINT_URL')} as in "
            "http://localhost:9000"
        ) from error
