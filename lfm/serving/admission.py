"""What happens to every request before and after its handler: limits, the body read whole, counters."""

import asyncio
import time
from contextlib import suppress
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lfm.serving import server_metrics
from lfm.serving.request import RequestError
from lfm.serving.settings import Settings

PATHS = ("/invocations", "/predict", "/ping", "/ready", "/version", "/metrics", "/openapi.json")
DRAIN_BYTES, DRAIN_SECONDS = 100_000_000, 5.0
BUSY = "the server is at its limit of requests; retry after the time in Retry-After"


def refusal(status: int, message: str) -> JSONResponse:
    """An error as one line of JSON."""
    headers = {"Retry-After": "1"} if status == 503 else {}
    return JSONResponse({"error": " ".join(message.split())}, status, headers)


class Admission:
    """Lets as many requests in as there are places, and none that is too large or too slow.

    Args:
        app: what is behind it.
        settings: of the server.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings, self.inside = app, settings, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI calls it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"] if scope["path"] in PATHS else "other"
        status, began = 500, time.perf_counter()

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await (self._admit if scope["method"] == "POST" else self.app)(scope, receive, counted)
        finally:
            server_metrics.REQUESTS.labels(path, status).inc()
            server_metrics.LATENCY.labels(path).observe(time.perf_counter() - began)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.inside >= self.settings.requests:
            await _drain(receive)
            return await _closing(refusal(503, BUSY))(scope, receive, send)
        self.inside += 1
        server_metrics.IN_FLIGHT.inc()
        try:
            try:
                async with asyncio.timeout(self.settings.read_seconds):
                    body = await self._body(scope, receive)
            except TimeoutError:
                return await _closing(refusal(408, "the request did not arrive in time"))(scope, receive, send)
            except RequestError as error:
                return await _closing(refusal(error.status, str(error)))(scope, receive, send)
            await self.app(scope, _replay(body, receive), send)
        finally:
            self.inside -= 1
            server_metrics.IN_FLIGHT.dec()

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """All of it, or an error as soon as it is known to be too large."""
        most = int(self.settings.body_mb * 1e6)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        parts, size, more = [], 0, not length.isdigit() or int(length) <= most
        while more and size <= most:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestError("the client went away", 400)
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if not more and size <= most:
                return b"".join(parts)
        if more or not parts:
            await _drain(receive)
        raise RequestError(f"the request is larger than {self.settings.body_mb:g} MB; send fewer images at a time", 413)


async def _drain(receive: Receive) -> None:
    """Read on without keeping anything: a client that is still sending when its connection closes hears no answer."""
    left = DRAIN_BYTES
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body"):
                    return


def _closing(response: JSONResponse) -> JSONResponse:
    """The rest of the request is not read, so its connection cannot be used again."""
    response.headers["Connection"] = "close"
    return response


def _replay(body: bytes, receive: Receive) -> Receive:
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again
