"""icons-lt from packages made here, by this machine's own apt on a repository made here, and from two real ones."""

import hashlib
import io
import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lfm.config.presets import load
from lfm.data.sources import debian, icons
from lfm.data.sources.base import TEST, TRAIN, VAL
from lfm.errors import InputError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="the data set is built from Debian's packages"),
]
TRAINED = ("Adwaita", "gnome-colors", "Tango", "Numix", "Moka")
HELD_OUT = ("breeze", "Yaru", "sugar")
NAMES = {"edit-copy": 8, "go-next": 3, "list-add": 5}
"""Corners of a polygon that draws each name."""


COLOURS = {
    (theme, size): (36 * k % 252, 140 * k % 231, 85 * k % 247)
    for k, (theme, size) in enumerate((t, s) for t in (*TRAINED, "elementary-xfce", *HELD_OUT) for s in (24, 48))
}


def drawn(theme: str, name: str, size: int) -> bytes:
    """A PNG: a polygon whose corners tell the name, its colour theme and size; the rest is transparent."""
    image = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    circle = (size / 2, size / 2, size / 2.2)
    ImageDraw.Draw(image).regular_polygon(circle, NAMES[name], fill=COLOURS[theme, size])
    out = io.BytesIO()
    image.save(out, "png")
    return out.getvalue()


def write(root: Path, place: str, data: bytes) -> Path:
    path = root / "usr/share/icons" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def package(folder: Path, name: str, themes: tuple[str, ...]) -> Path:
    """A package of themes, each name in two sizes, and what is to be left out."""
    root = folder / name
    for theme in themes:
        for icon in NAMES:
            for size in (24, 48):
                write(root, f"{theme}/{size}x{size}/actions/{icon}.png", drawn(theme, icon, size))
        write(root, f"{theme}/24x24/symbolic/edit-cut-symbolic.png", drawn(theme, "go-next", 24))
        write(root, f"{theme}-dark/24x24/actions/go-next.png", drawn(theme, "edit-copy", 24))
        (root / "usr/share/icons" / theme / "48x48/actions/go-last.png").symlink_to("go-next.png")
    (root / "DEBIAN").mkdir()
    about = f"Package: {name}\nVersion: 1-1\nArchitecture: all\nMaintainer: a test <a@test>\nDescription: icons\n"
    (root / "DEBIAN/control").write_text(about)
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", root, folder], check=True, capture_output=True)
    return folder / f"{name}_1-1_all.deb"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("packages")
    return [package(folder, "some-icons", (*TRAINED, "elementary-xfce")), package(folder, "other-icons", HELD_OUT)]


@pytest.fixture
def repository(packages: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of these packages, as the only one that this machine's apt knows; it has no lists of it yet."""
    place, entries = tmp_path / "repository", []
    place.mkdir()
    for path in packages:
        shutil.copy(path, place)
        control = subprocess.run(["dpkg-deb", "--field", path], check=True, capture_output=True, text=True).stdout
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entries.append(f"{control}Filename: ./{path.name}\nSize: {path.stat().st_size}\nSHA256: {digest}\n")
    (place / "Packages").write_text("\n".join(entries))
    for name in ("lists/partial", "cache/archives/partial"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "status").touch()
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] copy:{place} ./\n")
    settings = {
        "Dir::Etc::sourcelist": tmp_path / "sources.list", "Dir::Etc::sourceparts": "-",
        "Dir::Cache": tmp_path / "cache", "Dir::State::lists": tmp_path / "lists",
        "Dir::State::status": tmp_path / "status",
    }  # fmt: skip
    (tmp_path / "apt.conf").write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    return place


@pytest.fixture
def published(packages: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """These packages as the ones that the data set is made of."""
    sums = {path.name.partition("_")[0]: hashlib.sha256(path.read_bytes()).hexdigest() for path in packages}
    (tmp_path / "published.json").write_text(json.dumps(sums))
    monkeypatch.setattr(icons, "PACKAGES", tmp_path / "published.json")
    return tmp_path / "published.json"


def test_it_is_built_once_by_this_machines_apt(
    repository: Path, published: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load("icons-lt").data
    source = icons.load_icons(config)
    assert source.classes == ("edit copy", "go next", "list add")
    source.check()
    for split, families in ((TRAIN, 5), (VAL, 1), (TEST, 3)):
        label_N = source.label_N[source.split_N == split]
        assert np.bincount(label_N).tolist() == [2 * families] * 3, "two sizes of each family's drawing"
    assert "3 classes, 30 pictures for training, 6 for validation, 18 of other artists" in capsys.readouterr().out
    shutil.rmtree(repository)
    again = icons.load_icons(config)
    assert again.checksum == source.checksum and not capsys.readouterr().out
    moved = home.parent / "moved"
    shutil.move(home / "downloads" / "icons-lt", moved)
    assert icons.load_icons(config.model_copy(update={"source": str(moved)})).checksum == source.checksum


def test_a_picture_is_the_drawing_on_white(packages: list[Path], tmp_path: Path) -> None:
    icons.build(packages, tmp_path / "built")
    source = icons.read(tmp_path / "built")
    found = {source.images.read(i) for i in range(len(source.images))}
    with Image.open(io.BytesIO(drawn("Yaru", "go-next", 48))) as image:
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
    expected = np.asarray(white.resize((32, 32), Image.Resampling.LANCZOS), np.int16)
    distances = [np.abs(np.asarray(Image.open(io.BytesIO(data)), np.int16) - expected).max() for data in found]
    assert min(distances) <= 1


def test_other_versions_are_refused_unless_they_are_wanted(repository: Path, published: Path, home: Path) -> None:
    published.write_text(json.dumps(dict.fromkeys(json.loads(published.read_text()), "0" * 64)))
    config = load("icons-lt").data
    with pytest.raises(InputError, match=r"2 of 2 packages are not those of Debian 12 \(some-icons_1-1_all.deb, other"):
        icons.load_icons(config)
    assert len(icons.load_icons(config.model_copy(update={"verify": False})).classes) == 3


def test_what_apt_does_not_know_is_said_in_its_words(repository: Path, published: Path, home: Path) -> None:
    published.write_text(json.dumps({"no-such-icons": "0" * 64}))
    with pytest.raises(
        InputError, match=r"cannot be fetched \(E: Unable to locate package no-such-icons\); put icons.npy and"
    ):
        icons.load_icons(load("icons-lt").data)


def test_a_machine_without_apt_is_told_what_to_do(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"\(no apt-get here\); put icons.npy and icons.json, as"):
        icons.load_icons(load("icons-lt").data)


def test_a_machine_without_the_renderer_is_told_its_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(icons, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"run: pip install '\.\[icons\]'"):
        icons.load_icons(load("icons-lt").data)


def test_altered_files_are_refused(packages: list[Path], tmp_path: Path) -> None:
    icons.build(packages, tmp_path)
    pixels = np.load(tmp_path / "icons.npy")
    pixels[0, 0, 0] ^= 1
    np.save(tmp_path / "icons.npy", pixels)
    with pytest.raises(InputError, match=r"sha256 of icons\.npy is another than icons\.json says"):
        icons.read(tmp_path)
    (tmp_path / "icons.npy").unlink()
    with pytest.raises(InputError, match="does not hold the pictures of icons-lt"):
        icons.read(tmp_path)


# --- Which pictures become data ------------------------------------------------------------------------


def pictures(seed: int, count: int, split: int) -> list[tuple[int, NDArray[np.uint8]]]:
    rng = np.random.default_rng([seed, split])
    return [(split, rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(count)]


def splits(found: list[tuple[int, Any]]) -> dict[int, int]:
    return dict(Counter(split for split, _ in found))


def test_copies_are_left_out_and_the_tests_rather_than_those_of_training() -> None:
    train, test = pictures(0, 7, TRAIN), pictures(0, 5, TEST)
    near = [(TEST, (train[0][1].astype(np.int16) + 3).clip(0, 255).astype(np.uint8))]
    assert splits(icons.choose({"a": near + test + train})["a"]) == {TRAIN: 7, TEST: 5}
    assert splits(icons.choose({"a": test + train + train})["a"]) == {TRAIN: 7, TEST: 5}


def test_what_hangs_under_two_names_is_in_neither() -> None:
    shared = pictures(9, 2, TRAIN)
    one, other = (pictures(seed, 6, TRAIN) + pictures(seed, 4, TEST) for seed in (1, 2))
    found = icons.choose({"one": one + shared, "other": other + shared})
    assert all(splits(several) == {TRAIN: 6, TEST: 4} for several in found.values())


def test_classes_have_enough_pictures_and_come_in_the_order_of_their_number() -> None:
    sizes = {"few": (5, 4), "untested": (6, 3), "b": (6, 4), "a": (6, 4), "many": (9, 4)}
    given = {
        name: pictures(k, train, TRAIN) + pictures(k, test, TEST)
        for k, (name, (train, test)) in enumerate(sizes.items())
    }
    assert list(icons.choose(given)) == ["many", "a", "b"]


def test_svg_files_are_drawn_and_broken_ones_are_not() -> None:
    half = '<rect x="2" width="2" height="4" fill="#c00000"/>'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 4">{half}</svg>'
    pixels = icons.render(svg.encode(), "svg")
    assert pixels is not None and pixels.shape == (32, 32, 3)
    assert (pixels[:, :15] == 255).all() and (pixels[:, 17:] == (192, 0, 0)).all()
    assert icons.render(svg.encode()[:60], "svg") is None
    assert icons.render(b"\x89PNG\r\n\x1a\n broken", "png") is None
    oblong = io.BytesIO()
    Image.new("RGB", (8, 16), "red").save(oblong, "png")
    assert icons.render(oblong.getvalue(), "png") is None


def test_real_packages_have_real_icons(tmp_path: Path) -> None:
    """Two of the smallest, over the network, as this machine's apt has it."""
    debs = debian.download(["tango-icon-theme", "sugar-icon-theme"], tmp_path, 120)
    assert [path.name.partition("_")[0] for path in debs] == ["tango-icon-theme", "sugar-icon-theme"]
    found = list(icons.candidates(debs))
    assert {drawing.split for drawing in found} == {TRAIN, TEST}
    (copy,) = [drawing for drawing in found if drawing.name == "edit-copy" and drawing.kind == "svg"][:1]
    pixels = icons.render(copy.data, copy.kind)
    assert pixels is not None and 0 < (pixels < 250).any(axis=2).mean() < 1
