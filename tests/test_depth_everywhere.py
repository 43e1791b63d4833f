"""Images of more than 8 bits: what the audit finds, and the same rule in serving, promotion and predict."""

import io
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from lfm.cli.main import app
from lfm.data.artifact import read_info
from lfm.data.audit import audit
from lfm.data.decoding import decode
from lfm.jobs.champion import input_of
from lfm.jobs.data_report import problems_of
from lfm.report.data_page import data_page
from lfm.serving.predictor import Predictor
from lfm.serving.request import Limits, Request, RequestError, pixels_of
from tests.deep import png16, tiff
from tests.deep_scenes import KINDS, SIDE, build, scenes
from tests.serving import write_vit
from tests.warm import lfm

# --- what the audit finds ---


def test_levels_that_mean_no_value_are_said_with_their_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [picture.astype("<f4") for picture in scenes(0, 1)]
    pictures[3][2, 2], pictures[5][4, 4], pictures[6][:2, 0], pictures[8][1, 1] = 1e30, -9999, np.nan, np.inf
    folder = build(tmp_path, [tiff(picture) for picture in pictures])
    said = capsys.readouterr().out
    assert "warning: 2 images with levels that are no numbers (NaN, infinity): 6.img, 8.img" in said
    assert "warning: 2 images with levels that are far outside that range, as 1e30 or -9999 are: 3.img, 5.img" in said
    found = audit(folder)
    assert [image["name"] for image in found["odd"]["no-number"]["first"]] == ["6.img", "8.img"]
    assert [image["name"] for image in found["depth"]["results"]["far off"]["first"]] == ["3.img", "5.img"]
    problems = {item["what"]: item for item in problems_of(found, None, 0.5)}
    assert problems["deep images with levels that are no numbers (NaN, infinity)"]["count"] == 2
    assert problems["deep images with levels far beyond black or white, as 1e30 or -9999 are"]["count"] == 2


def test_plain_floats_and_hot_pixels_are_not_said_to_mean_no_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(tmp_path / "floats", [tiff(picture.astype("<f4")) for picture in scenes(0, 1)])
    twelve = [np.floor(picture).astype("u2") for picture in scenes(0, 4095)]
    twelve[4][3, 3] = 65535
    build(tmp_path / "hot", [png16(picture) for picture in twelve])
    assert "warning" not in capsys.readouterr().out


def wrong(tmp_path: Path, data: list[bytes], depth: Any) -> dict[str, int]:
    results = audit(build(tmp_path, data, depth=depth))["depth"]["results"]
    return {result: of["images"] for result, of in results.items() if of["images"]}


def test_a_range_that_does_not_fit_is_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    ten_bits = [png16(rng.integers(0, 1024, (SIDE, SIDE))) for _ in range(8)]
    assert wrong(tmp_path / "full", ten_bits, "full") == {"black": 8}
    assert wrong(tmp_path / "white", [png16(rng.integers(900, 1024, (SIDE, SIDE))) for _ in range(8)], (0, 800)) == {
        "white": 8, "cut off": 8
    }  # fmt: skip
    assert wrong(tmp_path / "both", ten_bits, (511, 513)) == {"black and white": 8, "cut off": 8}
    assert wrong(tmp_path / "auto", ten_bits, "auto") == {} == wrong(tmp_path / "low", ten_bits, (0, 1023))
    folder = tmp_path / "full" / "data"
    problems = problems_of(audit(folder), None, 0.5)
    black = next(item for item in problems if item["what"] == "deep images that come out nearly black")
    assert black["count"] == 8 and "data.depth" in black["how"] and black["examples"][0] == "2.img"


def test_the_page_states_the_rule(tmp_path: Path) -> None:
    folder = build(tmp_path, [make(p) for make in (KINDS["12 bits in a PNG"][2],) for p in scenes(0, 4095)])
    found = audit(folder)
    report: dict[str, Any] = {
        "data": {"name": "x", "source": "", "seed": 0, "shots": "", "artifact": "", "tau": 1,
                 "shot_group": ["few"] * 2},
        "source": [], "inspect": None, "no_text": "none", "audit": found, "problems": [],
    }  # fmt: skip
    page = re.sub(r"<[^>]+>", " ", data_page("t", report))
    assert "Images of more than 8 bits" in page and re.search(r"u16 +10 +0 +4095 +12 bits hold every level", page)


# --- the same everywhere ---


@pytest.mark.parametrize("depth", ["auto", "full", "percentile", (100.0, 3000.0)])
def test_the_rule_is_in_the_artifacts_content_and_in_what_a_champion_must_take(depth: Any, tmp_path: Path) -> None:
    data = [KINDS["12 bits in a PNG"][2](p) for p in scenes(0, 4095)]
    first, other = build(tmp_path / "a", data, depth=depth), build(tmp_path / "b", data, depth=(1.0, 2.0))
    assert read_info(first)["depth"] != read_info(other)["depth"]
    assert input_of(str(first)) != input_of(str(other))


def test_serving_takes_the_range_of_training(tmp_path: Path) -> None:
    folder, _ = write_vit(tmp_path / "model", tmp_path, depth={"u16": {"low": 0, "high": 4095, "why": "", "images": 9}})
    predictor = Predictor(folder, precision="fp32")
    levels = np.random.default_rng(0).integers(0, 4096, (40, 50)).astype(np.uint16)
    found = pixels_of(Request([png16(levels)]), predictor, Limits())
    grey = np.rint(levels / 4095 * 255).astype(np.uint8)
    assert np.array_equal(found[0], predictor.fit(Image.fromarray(grey).convert("RGB")))
    floats = tiff((levels / 4095).astype("<f4"))
    with pytest.raises(RequestError, match=r"'cold.tif' has floating-point levels, and nothing says") as refusal:
        pixels_of(Request([floats]), predictor, Limits(), ["'cold.tif'"])
    assert refusal.value.status == 422


@pytest.mark.parametrize("kind", ["16-bit", "32-bit", "floating-point"])
def test_a_model_of_8_bits_refuses_deep_images_in_predict_and_serve(kind: str, tmp_path: Path) -> None:
    """Nothing says how its training images would have been scaled."""
    folder, _ = write_vit(tmp_path / "model", tmp_path)
    levels = np.random.default_rng(0).integers(0, 4096, (40, 50))
    deep = {"16-bit": png16(levels.astype("u2")), "32-bit": tiff(levels.astype("<i4")),
            "floating-point": tiff((levels / 4095).astype("<f4"))}[kind]  # fmt: skip
    wrong = f"deep.png has {kind} levels, and nothing says which of them are black and white"
    with pytest.raises(RequestError, match=wrong) as refusal:
        pixels_of(Request([deep]), Predictor(folder, precision="fp32"), Limits(), ["deep.png"])
    assert refusal.value.status == 422 and "save it with 8 bits" in str(refusal.value)
    (tmp_path / "deep.png").write_bytes(deep)
    done = CliRunner().invoke(app, ["predict", str(tmp_path / "deep.png"), "--model", str(folder), "--device", "cpu"])
    assert done.exit_code == 1 and wrong in done.output


@pytest.mark.slow
def test_a_run_on_12_bits_and_what_predict_says(tmp_path: Path) -> None:
    """Two classes that differ in brightness alone: a rule for each image would make them the same."""
    rng = np.random.default_rng(0)
    photos = tmp_path / "photos"
    for name, top in (("night sky", 700), ("snow field", 4095)):
        (photos / name).mkdir(parents=True)
        for k in range(30):
            (photos / name / f"{k}.png").write_bytes(png16(rng.integers(0, top + 1, (20, 20))))
    sets = ("model.image_size=16", "stage1.epochs=15", "stage2.epochs=2", "stage1.batch_size=16")
    command = [
        *lfm(),
        "run",
        "custom-scratch",
        "--home",
        str(tmp_path / "home"),
        "--json",
        str(tmp_path / "result.json"),
    ]
    command += [part for value in (f"data.source={photos}", *sets) for part in ("--set", value)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "60 16-bit images: levels 0 to 4095 become black to white (12 bits hold every level)" in done.stdout
    (model,) = (tmp_path / "home" / "store" / "served").glob("*/info.json")
    assert json.loads(model.read_text())["depth"]["u16"] | {"why": ""} == {
        "low": 0, "high": 4095, "why": "", "images": 60
    }  # fmt: skip
    for name, top in (("night sky", 700), ("snow field", 4095)):
        new = tmp_path / f"{name}.png"
        new.write_bytes(png16(rng.integers(0, top + 1, (33, 21))))
        command = [*lfm(), "predict", str(new), "--home", str(tmp_path / "home"), "--json", "--device", "cpu"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(os.environ))
        assert answer.returncode == 0, answer.stderr
        assert json.loads(answer.stdout)["label"] == name


def test_pil_itself_would_clip() -> None:
    """Why the conversion is ours."""
    levels = np.full((4, 4), 4095, np.uint16)
    clipped = np.asarray(Image.open(io.BytesIO(png16(levels))).convert("L"))
    assert (clipped == 255).all() and (np.asarray(decode(png16(levels), "x", 1))[..., 0] == 16).all()
