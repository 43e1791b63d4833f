"""The HTTP interface of a served model: MLflow's protocol at /invocations, image files at /predict.

POST /invocations  JSON as `mlflow models serve` takes it        GET /ping     the process answers
POST /predict      an image file, or several in a form           GET /ready    the model answers
GET  /version      which model                                   GET /metrics  for Prometheus
"""

import asyncio
import json
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any

import torch
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse

from lfm import __version__
from lfm.errors import InputError
from lfm.revision import commit
from lfm.serving import server_metrics
from lfm.serving.admission import Admission, refusal
from lfm.serving.batching import Batches
from lfm.serving.predictor import BATCH, Predictor
from lfm.serving.request import COLUMN, FORMATS, MOST_TOP, TOP, RequestError, of_json, params_of, pixels_of
from lfm.serving.request import Request as Asked
from lfm.serving.settings import Settings, from_environment

ERRORS: dict[int | str, dict[str, Any]] = {
    code: {
        "description": about,
        "content": {"application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}},
    }
    for code, about in {
        400: "The body has another form.", 408: "The body came too slowly.", 413: "Too many or too large images.",
        415: "No image, or another type of content.", 422: "An image or a value that cannot be used.",
        503: "The server is at its limit of requests: retry after the time in Retry-After.",
    }.items()
}  # fmt: skip
JSON_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "inputs": {"type": "array", "items": {}, "description": "Images: base64, or nested lists."},
                        "instances": {"type": "array", "items": {}},
                        "dataframe_records": {"type": "array", "items": {"type": "object"}},
                        "dataframe_split": {"type": "object"},
                        "params": {"type": "object"},
                    },
                }
            }
        },
    }
}
MOST_FILES = 1000
WATCH_SECONDS = 1.0
FILE = {"schema": {"type": "string", "format": "binary"}}
FORM = {
    "schema": {
        "type": "object",
        "required": ["image"],
        "additionalProperties": False,
        "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
    }
}
FILE_BODY = {
    "requestBody": {
        "required": True,
        "content": {"image/*": FILE, "application/octet-stream": FILE, "multipart/form-data": FORM},
    }
}


class Asking(BaseModel):
    """The query of /predict."""

    model_config = ConfigDict(extra="forbid")

    top: int = Field(TOP, ge=1, le=MOST_TOP)
    new_class: list[str] = []
    prior: str = ""


FIELDS = f"{', '.join([*Asking.model_fields][:-1])} and {[*Asking.model_fields][-1]}"
"""Of the query, in words."""


class Service:
    """The model of one worker and the threads around it.

    Args:
        settings: of the server.
    """

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(settings.threads_each)
        self.settings = settings
        self.predictor = Predictor(settings.folder, settings.device, settings.precision)
        self.predictor.own.told(settings.prior)  # one that does not fit is refused before any request
        self.predictor.features(self.predictor.blank())  # the first pass is the slowest
        self.decoders = ThreadPoolExecutor(settings.threads_each, "decode")
        self.batches = Batches(self.predictor.features, BATCH, server_metrics.BATCH.observe)

    async def answer(self, asked: Asked, names: list[str] | None = None) -> dict[str, Any]:
        """What the model says to each image.

        Raises:
            InputError: what the client sent cannot be used.
        """
        limits, prior = self.settings.limits, asked.prior or self.settings.prior
        await asyncio.to_thread(self.predictor.own.told, prior)
        if asked.new_classes:  # before the images cost anything
            await asyncio.to_thread(self.predictor.classes_of, asked.new_classes)
        pixels = await asyncio.to_thread(pixels_of, asked, self.predictor, limits, names or (), self.decoders.map)
        unit_ND = await self.batches(pixels)
        shares = await asyncio.to_thread(self.predictor.shares, prior, unit_ND)
        answers = await asyncio.to_thread(self.predictor.answers, unit_ND, asked.top, asked.new_classes, shares)
        server_metrics.IMAGES.inc(len(pixels))
        notes = [self.predictor.not_placed] if asked.new_classes and self.predictor.not_placed else []
        found: dict[str, Any] = {"predictions": self.predictor.rows(answers)}
        if shares and shares.estimated:
            found["prior"] = shares.named(self.predictor.classes)
            notes += shares.warnings
        said = "; ".join(note.removeprefix("note: ") for note in notes)
        return found | ({"note": f"note: {said}"} if notes else {})


def create(settings: Settings | None = None) -> FastAPI:
    """The application of one worker.

    Args:
        settings: of the server; those of the environment if None.
    """
    used = settings or from_environment()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = service = await asyncio.to_thread(Service, used)
        watch = asyncio.create_task(_end_with(used.supervisor))
        async with service.batches:
            yield
        watch.cancel()
        service.decoders.shutdown()

    app = FastAPI(title="LFM", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Admission, settings=used)
    app.add_exception_handler(InputError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_value)
    app.add_exception_handler(HTTPException, _refuse_http)
    app.add_exception_handler(Exception, _refuse_with_regret)
    app.post("/invocations", responses=ERRORS, openapi_extra=JSON_BODY)(invocations)
    app.post("/predict", responses=ERRORS, openapi_extra=FILE_BODY)(predict)
    app.get("/ping")(ping)
    app.get("/version")(version)
    app.get("/ready", response_class=PlainTextResponse, responses={503: ERRORS[503]})(ready)
    app.get("/metrics", response_class=PlainTextResponse)(metrics)
    return app


async def _end_with(supervisor: int) -> None:
    """A worker whose supervisor was killed would hold the port for ever.

    The process that it was forked from stays as long as the worker does; multiprocessing knows who asked for it.
    """
    parent = multiprocessing.parent_process()
    while not supervisor or parent is None or parent.is_alive():
        await asyncio.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


async def invocations(request: Request) -> dict[str, Any]:
    """MLflow's scoring protocol: images in JSON, with params top, new_classes and prior."""
    if request.query_params:
        field = next(iter(request.query_params))[:50]
        raise RequestError(f"unknown query field {field!r}; top, new_classes and prior go into params of the body")
    if _kind(request) != "application/json":
        raise RequestError("send application/json; image files go to /predict", 415)
    asked = await asyncio.to_thread(_parsed, await request.body())
    return await _service(request).answer(asked)


async def predict(request: Request, asking: Annotated[Asking, Query()]) -> dict[str, Any]:
    """An image file as the body, or several as the files of a form."""
    for field in ("top", "prior"):
        if len(request.query_params.getlist(field)) > 1:
            raise RequestError(f"the query has {field} more than once; give it one value")
    params, kind = (
        params_of({"top": asking.top, "new_classes": asking.new_class, "prior": asking.prior}),
        _kind(request),
    )
    if kind == "multipart/form-data":
        async with request.form(max_files=MOST_FILES, max_fields=10) as form:
            files = _files_of(form)
            asked = Asked([await file.read() for file in files], **params)
            names = [f"{(file.filename or 'file')[:60]!r}" for file in files]
        return await _service(request).answer(asked, names)
    if kind != "application/octet-stream" and not kind.startswith("image/"):
        kinds = "image/*, application/octet-stream or multipart/form-data"
        raise RequestError(f"send {kinds}, of {', '.join(FORMATS)}", 415)
    return await _service(request).answer(Asked([await request.body()], **params))


def _files_of(form: FormData) -> list[UploadFile]:
    """The files of a form, all in the field image.

    Raises:
        RequestError: It has another field, or text in this one.
    """
    files = []
    for field, value in form.multi_items():
        if field != COLUMN:
            raise RequestError(
                f"unknown form field {field[:50]!r}; files go into the field {COLUMN}, {FIELDS} into the query"
            )
        if not isinstance(value, UploadFile):
            raise RequestError(f"the form field {COLUMN} is text; send a file in it, with a filename")
        files.append(value)
    return files


async def ping() -> dict[str, bool]:
    """The process answers."""
    return {"alive": True}


async def ready(request: Request) -> Response:
    """The model is loaded and answers."""
    return PlainTextResponse("ready") if _service(request).batches.alive else refusal(503, "the model does not answer")


async def version(request: Request) -> dict[str, Any]:
    """Which model this is, and what it can do."""
    service = _service(request)
    predictor = service.predictor
    return {
        "lfm": __version__,
        "commit": commit(),
        "model": service.settings.model,
        "content": predictor.content,
        "classes": len(predictor.classes),
        "calibrated": predictor.calibration is not None,
        "new_classes": predictor.words is not None,
    }


async def metrics() -> Response:
    """Counters of all workers, for Prometheus."""
    content, kind = await asyncio.to_thread(server_metrics.exposition)
    return Response(content, media_type=kind)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _parsed(body: bytes) -> Asked:
    try:
        return of_json(json.loads(body))
    except RecursionError as error:
        raise RequestError("the JSON is nested too deeply", 400) from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise RequestError(f"the body is no JSON: {error}", 400) from error


async def _refuse(_: Request, error: Exception) -> Response:
    return refusal(error.status if isinstance(error, RequestError) else 422, str(error))


async def _refuse_value(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "extra_forbidden":
        return refusal(422, f"unknown query field {str(first['loc'][-1])[:50]!r}; there are {FIELDS}")
    return refusal(422, f"{first['loc'][-1]}: {first['msg']}")


async def _refuse_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = refusal(error.status_code, str(error.detail))
    response.headers.update(error.headers or {})
    return response


async def _refuse_with_regret(_: Request, error: Exception) -> Response:
    return refusal(500, "the server failed; its log says why")
