"""Only the first frame is read: damage in a later one does not matter, and any damage in it means that image, named."""

import io
import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from lfm.cli.main import app
from lfm.config.presets import load
from lfm.data.decoding import BadImageError, decode, decode_fast, look
from lfm.errors import InputError
from lfm.jobs.prepare import dataset_for
from lfm.serving.predictor import Predictor
from lfm.serving.request import Limits, Request, RequestError, pixels_of
from tests.decoder_inputs import frames
from tests.pictures import encoded, photo
from tests.programs.fuzz_decoder import fuzz
from tests.serving import write_vit

REPOSITORY = Path(__file__).parents[1]


def broken_gif() -> bytes:
    """Junk where the second frame begins, and nothing behind it."""
    whole = frames("gif")
    with Image.open(io.BytesIO(whole)) as image:
        image.seek(1)
        begin = image.tile[0].offset
    return whole[: begin - 12] + b"\xff" * 40


def broken_tiff() -> bytes:
    """The second directory lies beyond the end of the file."""
    whole = bytearray(frames("tiff"))
    (first,) = struct.unpack_from("<I", whole, 4)
    (entries,) = struct.unpack_from("<H", whole, first)
    struct.pack_into("<I", whole, first + 2 + 12 * entries, len(whole) + 999)
    return bytes(whole)


def odd_tiff() -> bytes:
    """The second directory is junk."""
    whole = bytearray(frames("tiff"))
    (first,) = struct.unpack_from("<I", whole, 4)
    (entries,) = struct.unpack_from("<H", whole, first)
    (second,) = struct.unpack_from("<I", whole, first + 2 + 12 * entries)
    whole[second:] = b"\xee" * (len(whole) - second)
    return bytes(whole)


def broken_avif() -> bytes:
    whole = frames("avif")
    return whole[:-60] + b"\xa5" * 60


def broken_webp() -> bytes:
    whole = bytearray(frames("webp"))
    last = whole.rindex(b"ANMF")
    whole[last + 60 :] = b"\x5a" * (len(whole) - last - 60)
    return bytes(whole)


def broken_apng() -> bytes:
    whole = bytearray(frames("png"))
    last = whole.rindex(b"fdAT")
    whole[last + 8 : last + 40] = b"\x13" * 32
    return bytes(whole)


def broken_mpo() -> bytes:
    whole = frames("mpo")
    return whole[: whole.rindex(b"\xff\xd8\xff") + 300]


BROKEN = {
    "gif": broken_gif, "tiff": broken_tiff, "tiff with junk": odd_tiff, "avif": broken_avif, "webp": broken_webp,
    "apng": broken_apng, "mpo": broken_mpo,
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_damage_in_a_later_frame_does_not_matter(kind: str) -> None:
    data = BROKEN[kind]()
    whole = frames({"apng": "png", "tiff with junk": "tiff"}.get(kind, kind))
    assert data != whole
    assert "animated" in look(data, 1).odd
    for way in (decode, lambda *a: decode_fast(*a).permute(1, 2, 0)):
        assert np.array_equal(np.asarray(way(data, "x", 1)), np.asarray(decode(whole, "x", 1)))


def damaged() -> dict[str, bytes]:
    """Files whose first frame cannot be had, by name; each format raises in its own way."""
    return {
        "torn.gif": frames("gif")[:120],
        "torn.avif": encoded(photo(1, 40, 30), "avif")[:300],
        "torn.webp": encoded(photo(1, 40, 30), "webp")[:90],
        "torn.jp2": encoded(photo(1, 40, 30), "jpeg2000")[:200],
        "page.tif": frames("tiff")[:60],
        "words.png": b"GIF89a? no",
    }


def put_photos(root: Path, bad: dict[str, bytes]) -> int:
    """Two classes of ten images in each of both splits, and damaged ones among the training images."""
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for k in range(10):
                seed = 100 * (split == "test") + 50 * (name == "dog") + k
                (root / split / name / f"{k}.png").write_bytes(encoded(photo(seed, 20, 20)))
    for name, data in bad.items():
        (root / "train" / "cat" / name).write_bytes(data)
    return 40 + len(bad)


def test_a_build_names_them_or_leaves_them_out_and_counts_what_is_left(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = damaged()
    total = put_photos(tmp_path / "photos", bad)
    values = {"data.source": str(tmp_path / "photos"), "model.tower": "conv4", "model.weights": "random"}
    with pytest.raises(InputError, match=rf"{len(bad)} of {total} images cannot be used") as refusal:
        dataset_for(load("custom", values).data, load("custom", values).model, 0)
    for name in bad:
        assert re.search(rf"train/cat/{re.escape(name)} is (truncated or damaged|no image)", str(refusal.value)), name
    capsys.readouterr()
    skip = load("custom", values | {"data.on_bad_image": "skip", "data.max_bad": 0.2})
    folder, _ = dataset_for(skip.data, skip.model, 0)
    said = capsys.readouterr().out
    assert f"{len(bad)} of {total} images cannot be used and are left out" in said and "torn.avif" in said
    assert "20 train, 0 val, 20 test images are left" in said
    assert json.loads((folder / "info.json").read_text())["counts"] == [10, 10]


def test_a_link_to_nothing_is_a_bad_image_also_where_a_test_split_is_made(tmp_path: Path, home: Path) -> None:
    photos = tmp_path / "photos"
    for name in ("cat", "dog"):
        (photos / name).mkdir(parents=True)
        for k in range(12):
            (photos / name / f"{k}.png").write_bytes(encoded(photo(k + 50 * (name == "dog"), 20, 20)))
    (photos / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    values = {"data.source": str(photos), "model.tower": "conv4", "model.weights": "random"}
    with pytest.raises(InputError, match=r"1 of \d+ images cannot be used: \S*gone.png cannot be read"):
        dataset_for(load("custom", values).data, load("custom", values).model, 0)
    skip = load("custom", values | {"data.on_bad_image": "skip"})
    assert json.loads((dataset_for(skip.data, skip.model, 0)[0] / "info.json").read_text())["classes"] == ["cat", "dog"]


def test_predict_goes_on_and_ends_with_1(tmp_path: Path) -> None:
    folder, _ = write_vit(tmp_path / "model", tmp_path)
    photos = tmp_path / "photos"
    photos.mkdir()
    for k in range(40):  # more than are taken at once
        (photos / f"{k:02d}.png").write_bytes(encoded(photo(k, 40, 30)))
    bad = damaged()
    for name, data in bad.items():
        (photos / f"20-{name}").write_bytes(data)
    (photos / "later.gif").write_bytes(broken_gif())
    runner = CliRunner()
    done = runner.invoke(app, ["predict", str(photos), "--model", str(folder), "--device", "cpu", "--json"])
    assert done.exit_code == 1, done.output
    rows = {Path(row["image"]).name: row for row in map(json.loads, done.stdout.splitlines())}
    assert len(rows) == 41 + len(bad)
    for name, row in rows.items():
        assert ("error" in row) == (name.removeprefix("20-") in bad), name
        assert ("label" in row) != ("error" in row)
    assert f"error: {len(bad)} of {len(rows)} images cannot be used" in done.stderr
    done = runner.invoke(app, ["predict", str(photos), "--model", str(folder), "--device", "cpu", "--top", "1"])
    assert done.exit_code == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == len(bad) + 1
    assert all(any(name in line for line in lines) for name in bad)
    assert done.stdout.count(" %  ") == 41
    sound = runner.invoke(app, ["predict", str(photos / "later.gif"), "--model", str(folder), "--device", "cpu"])
    assert sound.exit_code == 0 and sound.stderr == ""


def test_a_server_refuses_them_by_name(tmp_path: Path) -> None:
    predictor = Predictor(write_vit(tmp_path / "model", tmp_path)[0], precision="fp32")
    for name, data in damaged().items():
        with pytest.raises(RequestError, match=re.escape(name)) as refusal:
            pixels_of(Request([encoded(photo(1, 40, 30)), data]), predictor, Limits(), ["good", name])
        assert refusal.value.status in (415, 422)
    for kind, make in BROKEN.items():
        assert len(pixels_of(Request([make()]), predictor, Limits())) == 1, kind


NOISY = """
import io, sys
from PIL import Image
from lfm.data.decoding import BadImageError, decode, look
from tests.decoder_inputs import frames
from tests.pictures import encoded, photo
from tests.test_frames import broken_mpo

palette = photo(3, 40, 30, "P")
tiff = encoded(photo(5, 40, 30), "tiff", compression="jpeg")
files = [
    encoded(palette, "png", transparency=bytes(range(256))),  # transparency in bytes
    broken_mpo().replace(b"MPF", b"MPX"),
    frames("png").replace(b"acTL\\0\\0\\0\\3", b"acTL\\0\\0\\0\\0"),  # an animation of no frames
    encoded(photo(1, 40, 30), "png")[:-30],
    tiff[: len(tiff) // 2], tiff.replace(b"\\xff\\xdb", b"\\xff\\xda"),
    encoded(Image.new("1", (12_000, 9_000)), "png"),
]
for data in files:
    for way in (lambda: look(data, 200), lambda: decode(data, "x", 200)):
        try:
            way()
        except BadImageError:
            pass
"""


@pytest.mark.slow
def test_nothing_that_libraries_warn_of_reaches_the_user() -> None:
    done = subprocess.run([sys.executable, "-c", NOISY], capture_output=True, text=True, cwd=REPOSITORY, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_some_seconds_of_damaged_files() -> None:
    """The same for longer: make fuzz."""
    tried, used = fuzz(8.0, first=0)
    assert tried > 100 and 0 < used < tried


def test_any_exception_of_a_decoder_means_that_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a format's reader that raises what none has raised before."""
    from PIL import PngImagePlugin

    def fails(self: object) -> None:
        raise ArithmeticError("of a reader")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fails)
    data = encoded(photo(1, 40, 30), "png")
    for way in (lambda: look(data, 1), lambda: decode(data, "x", 1), lambda: decode_fast(data, "x", 1)):
        with pytest.raises(BadImageError, match=r"is truncated or damaged \(of a reader\)"):
            way()
