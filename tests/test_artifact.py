"""Folders that are complete or absent: keys, publishing, checksums."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfm.errors import InputError
from lfm.storage.artifact import (
    MANIFEST,
    content_key,
    publishing,
    read_manifest,
    sha256_file,
    verify,
)
from lfm.storage.artifact import home as lfm_home
from lfm.storage.store import build_once
from tests.artifact_cases import INPUTS, fill, tree

# --- keys ---

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


def reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return [reordered(item) for item in value] if isinstance(value, list) else value


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.dictionaries(st.text(), values, min_size=1, max_size=5))
def test_a_key_does_not_depend_on_the_order_of_the_fields(value: dict[str, Any]) -> None:
    key = content_key(value)
    assert content_key(reordered(value)) == key == content_key(json.loads(json.dumps(value)))
    assert len(key) == 32 and set(key) <= set("0123456789abcdef")


def test_keys_of_different_values_differ() -> None:
    values: list[Any] = [
        {}, [], None, 0, 1, "1", [1], ["1"], {"a": 1}, {"a": "1"}, {"b": 1}, {"a": 1, "b": 1}, {"a": [1, 2]},
        {"a": [2, 1]}, {"a": {"b": 1}}, {"a": None}, {"a": 0.1}, {"a": math.nextafter(0.1, 1)}, {"a": True},
    ]  # fmt: skip
    assert len({content_key(value) for value in values}) == len(values)


def test_a_value_that_json_cannot_hold_has_no_key() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        content_key({"lr": float("nan")})


def test_home_is_lfm_home_or_a_folder_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for value, expected in (("/some/where", Path("/some/where")), ("sub", tmp_path / "sub"), ("", tmp_path / ".lfm")):
        monkeypatch.setenv("LFM_HOME", value)
        assert lfm_home() == expected
    monkeypatch.delenv("LFM_HOME")
    assert lfm_home() == tmp_path / ".lfm"


# --- publishing ---


def test_the_manifest_lists_every_file_with_its_checksum(tmp_path: Path) -> None:
    folder = tmp_path / "some" / "artifact"
    with publishing(folder, "dataset", {"seed": 3}) as aside:
        fill(aside)
        assert not folder.exists()
    manifest = verify(folder)
    expected = {name: hashlib.sha256(content).hexdigest() for name, content in tree(folder).items() if name != MANIFEST}
    assert manifest["files"] == expected and len(expected) == 2
    assert (manifest["kind"], manifest["made_by"]["seed"], manifest["schema"]) == ("dataset", 3, 1)
    assert manifest == read_manifest(folder) == json.loads((folder / MANIFEST).read_text())
    assert [path.name for path in folder.parent.iterdir()] == ["artifact"]
    assert sha256_file(folder / "a.bin") == expected["a.bin"]


def test_the_content_hash_is_that_of_the_files_alone(tmp_path: Path) -> None:
    contents = []
    for name, seed, text in (("a", 0, "x"), ("b", 1, "x"), ("c", 0, "y")):
        with publishing(tmp_path / name, "text", {"seed": seed}) as aside:
            (aside / "file").write_text(text)
        contents.append(read_manifest(tmp_path / name)["content"])
    assert contents[0] == contents[1] != contents[2]


@pytest.mark.parametrize("interruption", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_build_leaves_nothing(interruption: type[BaseException], tmp_path: Path) -> None:
    def publish() -> None:
        with publishing(tmp_path / "artifact", "text", {}) as aside:
            fill(aside)
            raise interruption

    with pytest.raises(interruption):
        publish()
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_build_leaves_the_earlier_one_as_it_was_and_a_good_one_replaces_it(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    with publishing(folder, "text", {}) as aside:
        fill(aside)
    before = tree(folder)

    def fail() -> None:
        with publishing(folder, "text", {}) as aside:
            (aside / "a.bin").write_text("half")
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert tree(folder) == before and [path.name for path in tmp_path.iterdir()] == ["artifact"]
    with publishing(folder, "text", {}) as aside:
        (aside / "new").write_text("whole")
    assert set(tree(folder)) == {"new", MANIFEST} and verify(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


# --- checksums ---


def flip(path: Path, place: int = 0) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 0xFF
    path.write_bytes(raw)


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def overwrite(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def other_schema(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 0}))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a changed byte": lambda folder: flip(folder / "a.bin", 100),
    "a changed byte in a folder below": lambda folder: flip(folder / "deep" / "er" / "b.json"),
    "a byte too many": lambda folder: append(folder / "a.bin"),
    "a byte too few": lambda folder: truncate(folder / "a.bin"),
    "a missing file": lambda folder: (folder / "a.bin").unlink(),
    "a folder instead of a file": lambda folder: folder_instead(folder / "a.bin"),
    "a missing manifest": lambda folder: (folder / MANIFEST).unlink(),
    "a truncated manifest": lambda folder: truncate(folder / MANIFEST),
    "an empty manifest": lambda folder: overwrite(folder / MANIFEST, b""),
    "a manifest of zeros": lambda folder: overwrite(folder / MANIFEST, bytes(500)),
    "a flipped byte in the manifest": lambda folder: flip(folder / MANIFEST),
    "a manifest that is a list": lambda folder: overwrite(folder / MANIFEST, b"[]"),
    "a manifest without files": lambda folder: overwrite(folder / MANIFEST, b'{"schema": 1}'),
    "another schema": lambda folder: other_schema(folder / MANIFEST),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.usefixtures("home")
def test_a_damaged_artifact_is_refused_with_the_fix_and_built_again(damage: str) -> None:
    folder, reused = build_once("text", INPUTS, fill)
    assert not reused
    intact = tree(folder)
    DAMAGE[damage](folder)
    with pytest.raises(InputError, match=r"run .*again") as refusal:
        verify(folder)
    assert str(folder) in str(refusal.value)
    again, reused = build_once("text", INPUTS, fill)
    assert again == folder and not reused
    assert tree(folder) == intact
