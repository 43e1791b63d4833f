"""Images of more than 8 bits: one rule for all images of a data set, the same in serving, and said in the report."""

import io
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from lfm.backbones.towers import Preprocess
from lfm.cli.main import app
from lfm.config.schema import DataConfig
from lfm.data.artifact import add_pixels, judge, read_info, write
from lfm.data.audit import audit
from lfm.data.decoding import BadImageError, decode, decode_fast, look
from lfm.data.depth import ranges_in
from lfm.data.images import open_split
from lfm.data.sources.base import TEST, TRAIN, Files, Source
from lfm.jobs.champion import input_of
from lfm.jobs.data_report import problems_of
from lfm.report.data_page import data_page
from lfm.serving.predictor import Predictor
from lfm.serving.request import Limits, Request, RequestError, pixels_of
from tests.deep import chunk, jpeg2000, pgm, png16, tiff
from tests.serving import write_vit
from tests.warm import lfm

Array = NDArray[Any]
NATIVE = Preprocess(0, (), (), "bicubic", "squash")
SIDE = 24


def scenes(low: float, high: float, count: int = 10) -> list[NDArray[np.float64]]:
    """Pictures that use different parts of the range, so that a guess for each would scale each by another factor."""
    rng = np.random.default_rng(5)
    found = []
    for k in range(count):
        top = low + (high - low) * (0.25 + 0.75 * k / (count - 1))
        picture = low + (top - low) * rng.random((SIDE, SIDE))
        picture[0, 0] = top
        found.append(picture)
    found[-1][0, :2] = low, high
    return found


def whole(dtype: Any) -> Callable[[NDArray[np.float64]], Array]:
    return lambda picture: np.floor(picture).astype(dtype)


# name -> least and greatest level, how a file is made of them, the range that is expected (None: percentiles)
KINDS: dict[str, tuple[float, float, Callable[[NDArray[np.float64]], bytes], tuple[float, float] | None]] = {
    "8 bits in 16": (0, 255, lambda p: png16(whole("u2")(p)), (0, 255)),
    "10 bits in a TIFF": (0, 1023, lambda p: tiff(whole("<u2")(p)), (0, 1023)),
    "12 bits in a PNG": (0, 4095, lambda p: png16(whole("u2")(p)), (0, 4095)),
    "14 bits in a TIFF": (0, 16383, lambda p: tiff(whole("<u2")(p)), (0, 16383)),
    "16 bits": (0, 65535, lambda p: png16(whole("u2")(p)), (0, 65535)),
    "16 bits in JPEG 2000": (0, 65535, lambda p: jpeg2000(whole("u2")(p)), (0, 65535)),
    "a PGM of 10 bits, which PIL scales": (0, 1023, lambda p: pgm(whole("u2")(p), 1023), (0, 65535)),
    "12 bits in int32": (0, 4095, lambda p: tiff(whole("<i4")(p)), (0, 4095)),
    "floats 0 to 1": (0, 1, lambda p: tiff(p.astype("<f4")), (0, 1)),
    "floats -1 to 1": (-1, 1, lambda p: tiff(p.astype("<f4")), (-1, 1)),
    "floats 0 to 255": (0, 255, lambda p: tiff(p.astype("<f4")), (0, 255)),
    "hundredths of a kelvin": (29_000, 31_500, lambda p: tiff(whole("<u2")(p)), None),
    "degrees": (12.5, 41.25, lambda p: tiff(p.astype("<f4")), None),
    "Hounsfield units": (-1000, 2000, lambda p: tiff(whole("<i2")(p)), None),
    "unsigned 32 bits": (3_000_000_000, 4_000_000_000, lambda p: tiff(whole("<u4")(p)), None),
}


def levels_of(name: str) -> list[Array]:
    low, high, *_ = KINDS[name]
    pictures = scenes(low, high)
    if name.startswith("floats") or name == "degrees":
        return [p.astype(np.float32).astype(np.float64) for p in pictures]
    if "PGM" in name:  # as PIL has it
        return [np.floor(p) * 65535 // 1023 for p in pictures]
    return [np.floor(p) for p in pictures]


def build(folder: Path, data: list[bytes], **fields: Any) -> Path:
    """Both steps of an artifact; the first two images are test images, the labels go round."""
    raw = folder / "raw"
    raw.mkdir(parents=True)
    paths = [raw / f"{k}.img" for k in range(len(data))]
    for path, content in zip(paths, data, strict=True):
        path.write_bytes(content)
    split_N = np.array([TEST] * 2 + [TRAIN] * (len(data) - 2), np.int8)
    source = Source(Files([*map(str, paths)]), np.arange(len(data)) % 2, split_N, ("cat", "dog"), "files")
    config = DataConfig(name="custom", profile="as-is", **fields)
    table, whole_ = folder / "table", folder / "data"
    for each in (table, whole_):
        each.mkdir()
    write(table, source, config, 0, folder / "work")
    judge(table, config)
    add_pixels(whole_, table, NATIVE, config, folder / "pixels")
    return whole_


def greys(folder: Path) -> Array:
    """(N, H, W) of all images in the order they were given, test images first."""
    parts = [open_split(folder, split).fetch_training(np_range(folder, split)).numpy() for split in ("test", "train")]
    return np.concatenate(parts)[:, 0]


def np_range(folder: Path, split: str) -> Any:
    import torch

    return torch.arange(len(open_split(folder, split)))


@pytest.mark.parametrize("name", KINDS)
def test_one_range_for_all_images(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    low, high, make, expected = KINDS[name]
    folder = build(tmp_path, [make(p) for p in scenes(low, high)])
    ((begin, end),) = (of for kind, of in ranges_in(read_info(folder)).items() if kind in read_info(folder)["depth"])
    levels = np.stack(levels_of(name))
    if expected is None:  # close to what the training images hold, by an oracle of their pooled levels
        assert begin == pytest.approx(np.quantile(levels[2:], 0.01), abs=0.02 * (high - low))
        assert end == pytest.approx(levels[2:].max(), abs=0.03 * (high - low))
    else:
        assert (begin, end) == expected
    oracle = np.rint(np.clip((levels - begin) / (end - begin), 0, 1) * 255)
    assert np.abs(greys(folder) - oracle).max() <= 1
    assert oracle[0].mean() < oracle[-1].mean() / 2, "a dark picture stays darker than a bright one"
    said = capsys.readouterr().out
    assert re.search(rf"10 \S+ images: levels {re.escape(f'{begin:g}')} to \S+ become black to white", said), said
    assert not any(of["images"] for of in audit(folder)["depth"]["results"].values())


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_deep_colours_and_transparency(channels: int, tmp_path: Path) -> None:
    """PIL keeps the upper 8 bits of 16 in colour: of 12 bits four would be left."""
    rng = np.random.default_rng(channels)
    pictures = [rng.integers(0, 4096, (SIDE, SIDE, channels)).astype(np.uint16) for _ in range(6)]
    folder = build(tmp_path, [png16(p) for p in pictures])
    found = open_split(folder, "test").fetch_training(np_range(folder, "test")).numpy()
    colours = pictures[0][..., :3] if channels > 2 else pictures[0][..., :1].repeat(3, axis=2)
    assert np.abs(found[0].transpose(1, 2, 0) - np.rint(colours / 4095 * 255)).max() <= 1
    image = decode_fast(png16(pictures[0]), "x", 1, ranges_in(read_info(folder)))
    assert np.array_equal(image.numpy(), found[0])


def test_a_deep_image_is_turned_as_others_are() -> None:
    levels = np.arange(6 * 4, dtype=np.uint16).reshape(6, 4) * 2700
    exif = Image.Exif()
    for orientation, turn in {1: 0, 3: 2, 6: 3, 8: 1}.items():
        exif[0x0112] = orientation
        data = png16(levels, chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
        found = np.asarray(decode(data, "x", 1, grey=True))
        assert np.abs(found - np.rot90(np.rint(levels / 257), turn)).max() <= 1
        assert ("rotated" in look(data, 1).odd) == (orientation > 1)


def test_the_range_is_the_training_images_and_bits_are_those_of_all(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    bright = [tiff(rng.integers(30_000, 31_000, (SIDE, SIDE)).astype("<u2")) for _ in range(2)]
    dark = [tiff(rng.integers(28_000, 29_000, (SIDE, SIDE)).astype("<u2")) for _ in range(8)]
    depth = read_info(build(tmp_path / "a", bright + dark))["depth"]["u16"]
    assert 28_000 <= depth["low"] < depth["high"] < 29_000 and "percentile of the training" in depth["why"]
    twelve = [png16(rng.integers(0, 4096, (SIDE, SIDE))) for _ in range(2)]
    ten = [png16(rng.integers(0, 1024, (SIDE, SIDE))) for _ in range(8)]
    depth = read_info(build(tmp_path / "b", twelve + ten))["depth"]["u16"]
    assert (depth["low"], depth["high"], depth["images"]) == (0, 4095, 10)


def test_single_hot_pixels_do_not_make_the_others_dark(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    pictures = [rng.integers(0, 4096, (SIDE, SIDE)) for _ in range(10)]
    for picture in pictures:
        picture[3, 3] = 65535
    folder = build(tmp_path, [png16(p) for p in pictures])
    assert read_info(folder)["depth"]["u16"]["high"] == pytest.approx(4095, rel=0.02)
    assert 110 < greys(folder).mean() < 145


def test_what_is_no_number_is_black_and_all_of_it_is_a_bad_image(tmp_path: Path) -> None:
    picture = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE).astype("<f4")
    picture[2] = np.nan
    picture[5] = np.inf
    ranges = {"f32": (0.0, 1.0)}
    found = np.asarray(decode(tiff(picture), "x", 1, True, ranges))
    assert (found[2] == 0).all() and (found[5] == 255).all() and found[-1, -1] == 255
    assert look(tiff(picture), 1).deep.endswith(" 1")
    with pytest.raises(BadImageError, match=r"truncated or damaged .no level is a finite number"):
        look(tiff(np.full((4, 4), np.nan, "<f4")), 1)


def test_a_colour_tiff_of_which_the_lower_bits_are_lost_is_said_or_refused() -> None:
    rng = np.random.default_rng(3)
    deep = tiff(rng.integers(0, 65536, (9, 9, 3)).astype("<u2"))
    assert "deep-tiff" in look(deep, 1).odd
    for way in (lambda data: look(data, 1), lambda data: decode(data, "x", 1), lambda data: decode_fast(data, "x", 1)):
        with pytest.raises(BadImageError, match="upper 8 can be read, and these are nearly empty; save it as PNG"):
            way(tiff(rng.integers(0, 4096, (9, 9, 3)).astype("<u2")))


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
