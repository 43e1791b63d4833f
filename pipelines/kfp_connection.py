"""A connection to Kubeflow Pipelines, and its errors in one line that says what to check.

Who the user is comes from the environment variables and files of the KFP SDK.
"""

import contextlib
import io
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lfm.errors import InputError

TIMEOUT = (5, 15)
"""Seconds to connect and to answer, for the first request."""
AUTHORITY = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
"""Variables that name the file of an authority whose certificates are trusted. The SDK itself reads none."""
LOG_IN = (
    "log in as the KFP SDK does (KF_PIPELINES_SA_TOKEN_PATH, KF_PIPELINES_IAP_OAUTH2_CLIENT_ID, or a cookie in "
    "~/.config/kfp/context.json), and in a multi-user installation name your namespace with --namespace"
)


def connect(host: str, namespace: str = "") -> tuple[Any, str | None]:
    """A `kfp.Client` for a server that has answered as KFP, and the namespace of what is done there.

    Args:
        host: Address of the API; empty: the cluster that this runs in, or that kubectl knows.
        namespace: Namespace in a multi-user installation; empty: that of ~/.config/kfp/context.json.

    Raises:
        InputError: Nothing answers there, it refuses, it is not KFP, or it wants to know a namespace.
    """
    import kfp

    class Client(kfp.Client):
        def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
            """Ask once: the SDK asks a server that refuses five times, with a wait and a traceback each."""
            answer = self.healthzs.healthz_service_get_healthz(_request_timeout=TIMEOUT, _preload_content=False)
            # Read here, because the SDK takes any page for an answer with nothing in it.
            return SimpleNamespace(multi_user=json.loads(answer.data).get("multi_user") is True)

    if not host and not inside_a_cluster() and not _kubectl_configured():
        raise InputError("no KFP to talk to; name it with --host https://... or KF_PIPELINES_ENDPOINT")
    with one_line_errors(host, first=True):
        authority = next((os.environ[name] for name in AUTHORITY if os.environ.get(name)), None)
        client = Client(host=host or None, credentials=_credentials(), ssl_ca_cert=authority)
        multi_user = client.get_kfp_healthz().multi_user
        namespace = namespace or client.get_user_namespace()
    if multi_user and not namespace:
        raise InputError(f"{host or 'this KFP'} has several users: name your namespace with --namespace")
    return client, namespace or None


def run_page(host: str, run: str) -> str:
    """Address of a run in the KFP UI; where the UI's own address is unknown, the part of it after the address."""
    address = os.environ.get("KF_PIPELINES_UI_ENDPOINT") or host
    if address and "://" not in address:
        address = f"http://{address}"
    return f"{address.rstrip('/') or '/pipeline'}/#/runs/details/{run}"


@contextlib.contextmanager
def one_line_errors(host: str, first: bool = False) -> Iterator[None]:
    """Turn errors of the SDK into one line that says what to check, and hide what the SDK prints.

    Args:
        host: Address of the API, for the message.
        first: Whether this is the first request, so that the server may not be KFP at all.
    """
    import kfp_server_api
    from urllib3.exceptions import HTTPError

    at = host or "the cluster's own address"
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except kfp_server_api.ApiException as error:
        raise InputError(_refusal(at, error.status, error.reason, error.body)) from error
    except HTTPError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise InputError(
                f"{at} has a certificate that this machine does not trust: name the file of the authority that signed "
                f"it in {AUTHORITY[0]}"
            ) from error
        if "SSLError" in str(error):
            raise InputError(f"{at} does not speak TLS: write http://, or correct the port") from error
        raise InputError(f"nothing answers at {at}: check the address, the port-forward or VPN, and proxies") from error
    except (AttributeError, TypeError, ValueError) as error:
        if first:  # errors of the SDK when it reads an answer that is not KFP's
            raise InputError(f"{at} answers, but not as KFP; check the path, often /pipeline") from error
        if isinstance(error, ValueError):
            raise InputError(f"{at}: {error}") from error
        raise


def _refusal(at: str, status: int | None, reason: str | None, body: Any) -> str:
    if status in (401, 403):
        return f"{at} refuses ({status}): {LOG_IN}"
    if status == 404:
        return f"{at} does not know it (404): check the path, often /pipeline, and that what you name still exists"
    message = reason or ""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        answer = json.loads(body)
        message = str(answer.get("message") or answer["error"])
    return f"{at} answers with an error ({status}): {message.splitlines()[0] if message else 'it gives no reason'}"


def _credentials() -> Any:
    """The token of a service account, if the SDK's variable names its file."""
    if not os.environ.get("KF_PIPELINES_SA_TOKEN_PATH"):
        return None
    from kfp.client import ServiceAccountTokenVolumeCredentials

    return ServiceAccountTokenVolumeCredentials()


def inside_a_cluster() -> bool:
    """Whether this runs in a pod."""
    return "KUBERNETES_SERVICE_HOST" in os.environ


def _kubectl_configured() -> bool:
    return bool(os.environ.get("KUBECONFIG")) or (Path.home() / ".kube" / "config").is_file()
