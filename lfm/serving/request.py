"""What a client sends -> images, or an error that says what to send instead. No address is ever fetched."""

import base64
import binascii
import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lfm.data.decoding import BadImageError, decode
from lfm.errors import InputError
from lfm.serving.predictor import Predictor
from lfm.serving.prior import WORDS, Prior, parsed

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""PIL reads more, some with the help of other programs."""
FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
"""Of MLflow's scoring protocol."""
COLUMN = "image"
Map = Callable[..., Iterable[Any]]
TOP, MOST_TOP = 5, 100


class RequestError(InputError):
    """A request that cannot be answered.

    Args:
        message: what is wrong, and what to send.
        status: of HTTP.
    """

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """Of one request.

    Args:
        images: most images.
        megapixels: most millions of pixels of an image, as its file says before it is decoded.
        total_megapixels: of all images together.
    """

    images: int = 64
    megapixels: float = 25.0
    total_megapixels: float = 200.0


@dataclass(frozen=True)
class Request:
    """Of some images.

    Args:
        images: as they came.
        top: how many classes to answer with.
        new_classes: names of classes that training has not seen.
        prior: in which shares the classes come (`lfm.serving.prior`); empty: as the server has it.
    """

    images: list[Any]
    top: int = TOP
    new_classes: tuple[str, ...] = ()
    prior: Prior = ""


def of_json(body: Any) -> Request:
    """A request in one of MLflow's forms.

    An image is a base64 string, or nested lists of grey levels (H, W) or colours (H, W, 3), 0 to 255. They stand in a
    column or under a key named image, or in a list by themselves.

    Raises:
        RequestError: another form.
    """
    if not isinstance(body, dict) or len(found := [form for form in FORMS if form in body]) != 1:
        raise RequestError(f"the body is a JSON object with one of {', '.join(FORMS)}", 400)
    if extra := body.keys() - {found[0], "params"}:
        raise RequestError(f"unknown key {sorted(extra)[0][:50]!r}; besides {found[0]} there may be params", 400)
    given = body[found[0]]
    images = _of_split(given) if found[0] == "dataframe_split" else _of_rows(given)
    return Request(images, **params_of(body.get("params")))


def params_of(params: Any) -> dict[str, Any]:
    """`top`, `new_classes` and `prior` of a request's parameters.

    Raises:
        RequestError: others, or of another type.
    """
    params = params or {}
    if not isinstance(params, dict) or (extra := params.keys() - {"top", "new_classes", "prior"}):
        unknown = f": unknown {sorted(extra)[0][:50]!r}" if isinstance(params, dict) else ""
        raise RequestError(f"params is an object with top, new_classes and prior{unknown}", 400)
    top, names = params.get("top", TOP), params.get("new_classes") or []
    if isinstance(top, bool) or not isinstance(top, int | np.integer) or not 1 <= top <= MOST_TOP:
        raise RequestError(f"top is {str(top)[:20]!r}; it is a whole number of 1 to {MOST_TOP}")
    if not isinstance(names, list | tuple | np.ndarray) or not all(isinstance(name, str) for name in names):
        raise RequestError("new_classes is a list of names")
    given = params.get("prior") or ""
    if not isinstance(given, str | dict):
        raise RequestError(f"prior is {str(given)[:20]!r}; it is one of {', '.join(WORDS)}, or {{class: share}}")
    return {
        "top": int(top),
        "new_classes": tuple(str(name) for name in names),
        "prior": parsed(given) if isinstance(given, str) else given,
    }


def _of_split(given: Any) -> list[Any]:
    if not isinstance(given, dict) or not isinstance(given.get("data"), list):
        raise RequestError('dataframe_split is {"columns": ["image"], "data": [[IMAGE], ...]}', 400)
    columns = given.get("columns")
    if not isinstance(columns, list) or COLUMN not in columns:
        raise RequestError(f"dataframe_split.columns lacks {COLUMN!r}", 400)
    place = columns.index(COLUMN)
    if not all(isinstance(row, list) and len(row) == len(columns) for row in given["data"]):
        raise RequestError("each row of dataframe_split.data is a list with a value for each column", 400)
    return [row[place] for row in given["data"]]


def _of_rows(given: Any) -> list[Any]:
    if isinstance(given, dict):  # a tensor by its name
        given = given.get(COLUMN)
    if not isinstance(given, list):
        raise RequestError(f"images come as a list, or a list under {COLUMN!r}", 400)
    rows = []
    for row in given:
        if isinstance(row, dict) and COLUMN not in row:
            raise RequestError(f"a row lacks {COLUMN!r}", 400)
        rows.append(row[COLUMN] if isinstance(row, dict) else row)
    return rows


def of_table(given: Any, params: Any) -> Request:
    """A request as MLflow's pyfunc gets it.

    Args:
        given: a data frame with the column image, or a list; an image as in `of_json`, or bytes of a file, or an array.
        params: as in `of_json`.
    """
    cells = list(given[COLUMN]) if hasattr(given, "columns") else list(given)
    images: list[Any] = []
    for cell in cells:  # MLflow makes one row of `inputs` that is a list of strings
        several = isinstance(cell, list | np.ndarray) and len(cell) > 0 and isinstance(cell[0], str)
        images += list(cell) if several else [cell]
    return Request(images, **params_of(params))


def pixels_of(
    request: Request, predictor: Predictor, limits: Limits, names: Sequence[str] = (), each: Map = map
) -> NDArray[np.uint8]:
    """All images of a request as the predictor's tower wants them, (N, H, W, channels).

    Args:
        request: bytes of files, base64, arrays or nested lists.
        predictor: fits them.
        limits: of the request.
        names: of the images in errors; their numbers otherwise.
        each: like `map`; decodes the images, all of which have been looked at before.

    Raises:
        RequestError: none or too many, too large, or no images.
    """
    if not request.images:
        raise RequestError("there is no image in the request", 400)
    if len(request.images) > limits.images:
        raise RequestError(f"{len(request.images)} images came; send at most {limits.images} at a time", 413)
    names = names or [f"image {number}" for number in range(len(request.images))]
    left, found = limits.total_megapixels, []
    for name, item in zip(names, request.images, strict=True):
        image = _array(item, name) if isinstance(item, list | np.ndarray) else _bytes(item, name)
        megapixels = _megapixels(image, name)
        left -= megapixels
        if megapixels > limits.megapixels or left < 0:
            most = f"{limits.megapixels:g} million, {limits.total_megapixels:g} million in a request"
            raise RequestError(f"{name} has {megapixels:.1f} million pixels; an image may have {most}", 413)
        found.append(image)
    return np.stack(list(each(partial(_fitted, predictor), found, names)))


def _fitted(predictor: Predictor, image: bytes | NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    try:
        if isinstance(image, np.ndarray):
            return predictor.fit(image)
        return predictor.fit(decode(image, name, float("inf"), predictor.info["channels"] == 1, predictor.ranges))
    except BadImageError as error:
        raise RequestError(str(error)) from error
    except InputError as error:
        raise RequestError(f"{name} {error}") from error


def _bytes(item: Any, name: str) -> bytes:
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    if not isinstance(item, str):
        raise RequestError(f"{name} is {type(item).__name__}; send a file's bytes in base64, or grey levels 0 to 255")
    if "://" in item[:20] or item.startswith("data:"):
        raise RequestError(f"{name} is an address, and none is fetched; send the file's bytes in base64 by themselves")
    try:
        return base64.b64decode("".join(item.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"{name} is no base64 ({error})") from error


def _array(item: Any, name: str) -> NDArray[np.uint8]:
    try:
        levels = np.asarray(item)
    except (ValueError, OverflowError, TypeError) as error:
        raise RequestError(f"{name} is an array whose rows differ in length; send (H, W) or (H, W, 3)") from error
    fits = levels.ndim == 2 or (levels.ndim == 3 and levels.shape[2] == 3)
    if not fits or 0 in levels.shape:
        raise RequestError(f"{name} is an array of shape {levels.shape}; send (H, W) grey or (H, W, 3) colour")
    if levels.dtype.kind not in "iu" or levels.min() < 0 or levels.max() > 255:
        raise RequestError(f"{name} is an array of {levels.dtype}; send whole numbers 0 to 255")
    return np.ascontiguousarray(levels, np.uint8)


def _megapixels(image: bytes | NDArray[np.uint8], name: str) -> float:
    """By its header alone; a decompression bomb is never inflated."""
    if isinstance(image, np.ndarray):
        return int(image.shape[0]) * int(image.shape[1]) / 1e6
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            size: tuple[int, int] = Image.open(io.BytesIO(image), formats=FORMATS).size
    except Image.DecompressionBombError as error:
        raise RequestError(f"{name} has far too many pixels: {error}".split(",")[0], 413) from error
    except UnidentifiedImageError as error:
        raise RequestError(f"{name} is no image in one of the formats {', '.join(FORMATS)}", 415) from error
    except Exception as error:  # damaged files come to anything in PIL's readers
        raise RequestError(f"{name} is truncated or damaged ({error})") from error
    return size[0] * size[1] / 1e6
