"""What clients may send: every form gives the same pixels; anything else is one clear error with its status."""

import base64
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfm.errors import InputError
from lfm.serving.predictor import Predictor
from lfm.serving.request import Limits, Request, RequestError, of_json, of_table, params_of, pixels_of
from tests.serving import png, write_vit

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), np.uint8)
B64 = [base64.b64encode(png(pixels)).decode() for pixels in PIXELS]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    work = tmp_path_factory.mktemp("vit")
    return Predictor(write_vit(work / "model", work)[0], precision="fp32")


JSON_FORMS: dict[str, Any] = {
    "split": {"dataframe_split": {"columns": ["id", "image"], "data": [[k, b] for k, b in enumerate(B64)]}},
    "records": {"dataframe_records": [{"image": b} for b in B64]},
    "instances": {"instances": B64},
    "instances by name": {"instances": [{"image": b} for b in B64]},
    "inputs": {"inputs": B64},
    "inputs by name": {"inputs": {"image": B64}},
    "arrays": {"inputs": PIXELS.tolist()},
    "arrays and files": {"inputs": [PIXELS[0].tolist(), *B64[1:]]},
    "lines of base64": {"inputs": ["\n".join(b[i : i + 76] for i in range(0, len(b), 76)) for b in B64]},
}


@pytest.mark.parametrize("form", JSON_FORMS)
def test_every_form_of_json_gives_the_same_pixels(predictor: Predictor, form: str) -> None:
    expected = np.stack([predictor.fit(pixels) for pixels in PIXELS])
    request = of_json({**JSON_FORMS[form], "params": {"top": 2, "new_classes": ["owl"]}})
    assert (request.top, request.new_classes) == (2, ("owl",))
    assert np.array_equal(pixels_of(request, predictor, Limits()), expected)


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"image": B64}),
        pd.DataFrame({"image": [png(pixels) for pixels in PIXELS]}),
        pd.DataFrame({"image": list(PIXELS)}),
        pd.DataFrame({"image": [B64]}),
        PIXELS,
        B64,
    ],
)
def test_every_form_of_pyfunc_gives_the_same_pixels(predictor: Predictor, table: Any) -> None:
    expected = np.stack([predictor.fit(pixels) for pixels in PIXELS])
    request = of_table(table, {"top": np.int64(2), "new_classes": np.array(["owl"])})
    assert np.array_equal(pixels_of(request, predictor, Limits()), expected) and request.new_classes == ("owl",)


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is this large; written by hand, as PIL would have to fill it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"


@pytest.mark.parametrize(
    ("item", "status", "message"),
    [
        (b"", 415, "image 0 is no image in one of the formats JPEG"),
        (b"hello", 415, "is no image in one of the formats"),
        (EPS, 415, "is no image in one of the formats"),
        (png(PIXELS[0])[:600], 422, "image 0 is truncated or damaged"),
        (bomb(6000, 6000), 413, "image 0 has 36.0 million pixels; an image may have 25 million"),
        (bomb(60000, 60000), 413, "far too many pixels"),
        ("http://127.0.0.1/a.png", 422, "is an address, and none is fetched"),
        ("file:///etc/passwd", 422, "is an address"),
        ("data:image/png;base64,AAAA", 422, "is an address"),
        ("/etc/passwd!", 422, "image 0 is no base64"),
        ("é", 422, "is no base64"),
        (7, 422, "image 0 is int; send a file's bytes in base64"),
        (None, 422, "is NoneType"),
        ({"image": 1}, 422, "is dict"),
        ([], 422, r"shape \(0,\)"),
        ([[1, 2], [3]], 422, "rows differ in length"),
        ([[1, 2], [3, 256]], 422, "whole numbers 0 to 255"),
        ([[1, 2], [3, -1]], 422, "whole numbers 0 to 255"),
        ([[0.5, 2], [3, 1]], 422, "is an array of float64; send whole numbers"),
        ([[10**30, 2], [3, 1]], 422, "array"),
        ([["a", "b"]], 422, "array of"),
        ([[[1, 2], [3, 4]]], 422, r"shape \(1, 2, 2\); send \(H, W\) grey or \(H, W, 3\)"),
    ],
)
def test_what_is_no_image_is_refused_by_its_number(predictor: Predictor, item: Any, status: int, message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        pixels_of(Request([item]), predictor, Limits())
    assert refused.value.status == status


def test_limits_of_a_request(predictor: Predictor) -> None:
    for request, limits, message in (
        (Request([]), Limits(), "there is no image"),
        (Request(B64), Limits(images=2), "3 images came; send at most 2"),
        (Request(B64), Limits(total_megapixels=0.005), "image 2 has 0.0 million pixels"),
    ):
        with pytest.raises(RequestError, match=message) as refused:
            pixels_of(request, predictor, limits)
        assert refused.value.status == (413 if request.images else 400)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "a JSON object with one of"),
        ({}, "a JSON object with one of"),
        ({"inputs": B64, "instances": B64}, "with one of"),
        ({"inputs": B64, "colour": 1}, "unknown key 'colour'"),
        ({"inputs": "x"}, "images come as a list"),
        ({"inputs": {"picture": []}}, "images come as a list"),
        ({"dataframe_records": [{"x": 1}]}, "a row lacks 'image'"),
        ({"dataframe_split": {"columns": ["x"], "data": []}}, "lacks 'image'"),
        ({"dataframe_split": {"columns": ["image"], "data": [[1, 2]]}}, "a value for each column"),
        ({"dataframe_split": []}, "dataframe_split is"),
    ],
)
def test_other_forms_are_refused(body: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        of_json(body)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "params",
    [
        {"top": 0},
        {"top": 101},
        {"top": True},
        {"top": "3"},
        {"new_classes": "owl"},
        {"new_classes": [1]},
        {"k": 1},
        [1],
    ],
)
def test_other_params_are_refused(params: Any) -> None:
    with pytest.raises(RequestError):
        params_of(params)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(B64),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["image", "columns", "data", "top"]), inner)
    ),
    max_leaves=12,
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["inputs", "instances", "dataframe_split", "dataframe_records", "params"]), JSON)
)
def test_nothing_that_json_can_say_is_an_error_of_ours(predictor: Predictor, body: dict[str, Any]) -> None:
    try:
        pixels = pixels_of(of_json(body), predictor, Limits())
        assert pixels.shape[1:] == (32, 32, 3)
    except InputError as error:
        assert 0 < len(str(error)) < 400


def test_a_broken_file_never_becomes_another_error(predictor: Predictor, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for form in ("png", "jpeg", "gif", "webp", "tiff", "bmp"):
        whole = png(PIXELS[0], form)
        for _ in range(40):
            torn = bytearray(whole[: rng.integers(1, len(whole))] if rng.random() < 0.5 else whole)
            for place in rng.integers(0, len(torn), 8):
                torn[place] = rng.integers(0, 256)
            try:
                pixels_of(Request([bytes(torn)]), predictor, Limits())
            except RequestError as error:
                assert error.status in (413, 415, 422)
