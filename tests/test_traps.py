"""`lfm data report` on data that have every trap at once: each is shown, on one page."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from lfm.cli.main import app
from lfm.errors import counted
from tests.decoder_inputs import frames
from tests.deep import png16, tiff
from tests.pictures import encoded, photo

Files = dict[str, bytes]


def put(root: Path, files: Files) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def every_trap() -> Files:
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        f"{split}/{name}/{k}.png": encoded(photo(1000 * i + 100 * j + k, 90, 80))
        for i, split in enumerate(("Training", "Testing"))
        for j, name in enumerate(("left_hand", "right_hand", "n01440764", "Boat", "boats"))
        for k in range(4)
    }
    twice = files["Training/Boat/0.png"]
    files |= {
        # one class without test images
        "Training/owl/0.png": encoded(photo(9000, 90, 80)),
        # copies: across the splits, across the labels, and one that looks alike
        "Testing/Boat/leak.png": twice,
        "Training/left_hand/mislabelled.png": files["Training/right_hand/1.png"],
        "Testing/boats/alike.jpg": encoded(photo(103, 90, 80), "jpeg", quality=40),
        "Training/right_hand/alike.png": encoded(photo(103, 90, 80)),
        # odd, but used
        "Training/Boat/turned.jpg": encoded(photo(9001, 90, 80), "jpeg", exif=exif),
        "Training/Boat/print.jpg": encoded(photo(9002, 90, 80, "CMYK"), "jpeg"),
        "Training/Boat/clear.png": encoded(photo(9003, 90, 80, "RGBA")),
        "Training/Boat/moves.gif": frames("gif"),
        "Training/Boat/icon.png": encoded(photo(9004, 6, 6)),
        "Training/Boat/colours.tif": tiff(rng.integers(0, 65536, (60, 50, 3)).astype("<u2")),
        # deep, and one so dark that it is nearly black
        "Training/boats/deep.png": png16(rng.integers(0, 4096, (60, 50))),
        "Training/boats/night.png": png16(rng.integers(0, 30, (60, 50))),
        "Testing/boats/thermal.tif": tiff((rng.random((60, 50)) * 0.9).astype("<f4")),
        # that cannot be used
        "Training/boats/empty.jpg": b"",
        "Training/boats/torn.avif": encoded(photo(9005, 90, 80), "avif")[:200],
        "Testing/boats/page.html.png": b"<html>404</html>",
        # left out
        "Training/metadata.csv": b"file_name,label\nBoat/0.png,ship\n",
        "Training/Boat/Thumbs.db": b"x",
        "Training/Boat/@eaDir/0.png": twice,
        "Training/.DS_Store": b"x",
        "Training/Boat/notes.txt": b"x",
        "Training/Boat/levels.npy": b"x",
        "Training/cover.png": twice,
    }  # fmt: skip
    return files


SHOWN = {
    "splits taken": r"Training\W.{0,40}train",
    "labels of metadata that are not used": r"Training/metadata\.csv is not used, since the folders name the classes",
    "system files": r"3 hidden, thumbnail and system entries .*(@eaDir|Thumbs\.db|\.DS_Store)",
    "other files": r"2 files of \S+ are not images by their ending and are left out \(.*\.(txt|npy): 1",
    "images beside the classes": r"1 image of \S+ lies outside of class folders and is left out",
    "a class without test images": r"1 class has no test images \(owl \(1\)",
    "and what to do about it": r"1 class without test images\..*data\.without_test=leave-out",
    "images that cannot be used": r"3 images that cannot be used\.",
    "an empty file": r"empty\.jpg has zero bytes",
    "a torn one": r"torn\.avif is (truncated or damaged|no image)",
    "a page for an image": r"page\.html\.png is no image",
    "a leak": r"1 test image that is a training image too\..*Boat/leak\.png",
    "another label": r"1 group of equal images under several labels\.",
    "look-alikes": r"groups? of images that look alike across splits or labels",
    "orientation": r"rotated 1 turned by its EXIF or XMP orientation turned\.jpg",
    "printing colours": r"cmyk 1 printing colours, converted to RGB print\.jpg",
    "transparency": r"alpha 1 transparency, dropped clear\.png",
    "animation": r"animated 1 several frames, the first is used moves\.gif",
    "tiny": r"tiny 1 at most 8 pixels wide or high icon\.png",
    "deep": r"deep 3 more than 8 bits a channel",
    "deep colour TIFF": r"deep-tiff 1 colour TIFF of more than 8 bits .* colours\.tif",
    "depth of integers": r"u16 2 0 4095 12 bits hold every level",
    "depth of floats": r"f32 1 0 1 floats of 0 to 1",
    "a black result": r"1 deep image that comes out nearly black\..*night\.png",
    "a name of numbers": r"1 class name: a number, a code or a WordNet id.*n01440764",
    "names alike": r"class names: alike but for case, punctuation or plural.*Boat / boats",
    "near names": r"pairs of class names that are nearly the same to the text tower.*left hand / right hand 0\.97",
}


def text_of(page: Path) -> str:
    body = re.sub(r"<[^>]+>", " ", page.read_text().partition("</style>")[2])
    return html.unescape(re.sub(r"\s+", " ", body))


@pytest.mark.slow
def test_every_trap_is_shown_on_one_page(tmp_path: Path, home: Path) -> None:
    put(tmp_path / "photos", every_trap())
    page, values = tmp_path / "report.html", tmp_path / "report.json"
    command = ["data", "report", "custom-scratch", "--set", f"data.source={tmp_path / 'photos'}", "--out", str(page)]
    done = CliRunner().invoke(app, [*command, "--json", str(values)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    shown = text_of(page)
    missing = [trap for trap, pattern in SHOWN.items() if not re.search(pattern, shown)]
    assert not missing, f"{missing} of: {shown}"
    assert "Warning" not in done.stderr
    report = json.loads(values.read_text())
    assert report["source"] and all(line in shown for line in report["source"])
    # A run is refused for what the report shows.
    run = CliRunner().invoke(app, ["run", "custom-scratch", "--set", f"data.source={tmp_path / 'photos'}"])
    assert run.exit_code != 0


@pytest.mark.slow
def test_so_are_those_of_a_list(tmp_path: Path, home: Path) -> None:
    rows = ["Image,Class,Set,fold,weather"]
    for i, name in enumerate(("cat", "dog")):
        for k in range(6):
            put(tmp_path, {f"{name}{k}.png": encoded(photo(100 * i + k, 60, 60))})
            rows.append(f"{name}{k}.png,{name},{'Training' if k < 4 else 'holdout'},{k},sun")
    (tmp_path / "train.csv").write_text("\n".join(rows))
    page = tmp_path / "report.html"
    command = ["data", "report", "custom-scratch", "--set", f"data.source={tmp_path / 'train.csv'}", "--out", str(page)]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    shown = text_of(page)
    assert re.search(r"fold\W.{0,80}not used", shown), shown
    assert "8 train, 0 val, 4 test" in shown and "No problems were found" in shown


@pytest.mark.slow
def test_a_class_without_images_that_can_be_used_stops_no_report(tmp_path: Path, home: Path) -> None:
    files = {f"{s}/{n}/{k}.png": encoded(photo(k, 20, 20)) for s in ("train", "test") for n in "ab" for k in range(3)}
    put(tmp_path / "photos", files | {"train/c/0.png": b"", "test/c/0.png": encoded(photo(1, 20, 20))})
    page = tmp_path / "report.html"
    command = ["data", "report", "custom-scratch", "--set", f"data.source={tmp_path / 'photos'}", "--out", str(page)]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    shown = text_of(page)
    assert "1 class without training images." in shown and "class 'c' has no training image that can be used" in shown


@pytest.mark.parametrize(
    ("number", "words", "expected"),
    [
        (1, ("image",), "1 image"), (0, ("image",), "0 images"), (1234, ("image",), "1,234 images"),
        (1, ("class has", "classes have"), "1 class has"), (2, ("class has", "classes have"), "2 classes have"),
    ],
)  # fmt: skip
def test_a_number_agrees_with_its_noun(number: int, words: tuple[str, ...], expected: str) -> None:
    assert counted(number, *words) == expected


def test_no_message_says_one_images() -> None:
    """A literal plural right behind a number in a message is wrong for a number of 1."""
    behind_a_number = re.compile(r"\{[^{}]*\b(len|sum|total)\b[^{}]*\} (images|classes|folders|files|records|labels)\b")
    for path in Path("lfm").rglob("*.py"):
        for line in path.read_text().splitlines():
            found = behind_a_number.search(line)
            assert not found or path.name in ALWAYS_SEVERAL, f"{path}: {line}"


ALWAYS_SEVERAL = (
    "figures_training.py",
    "class_embedder.py",
    "request.py",
    "diagnostics.py",
    "compare_page.py",
    "parquet_images.py",
)
"""What they count is more than one thing, or a table that has passed the checks for that."""
