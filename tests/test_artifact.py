"""Folders that are complete or absent: keys, checksums, kills, two processes at once."""

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfm.errors import InputError
from lfm.jobs.step import as_user_error
from lfm.storage.artifact import (
    MANIFEST,
    check_writable,
    content_key,
    copy_to,
    publishing,
    read_manifest,
    sha256_file,
    verify,
)
from lfm.storage.artifact import home as lfm_home
from lfm.storage.store import build_once
from tests.warm import PROGRAMS

INPUTS = {"data": {"name": "x", "n": 3}, "seed": 0}


def fill(folder: Path) -> None:
    (folder / "a.bin").write_bytes(bytes(range(256)))
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "b.json").write_text('{"b": 1}')


def never(folder: Path) -> None:
    raise AssertionError(f"{folder}: built again")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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


# --- build once ---


def test_what_is_there_is_not_built_again(home: Path) -> None:
    first, reused_first = build_once("text", INPUTS, fill)
    second, reused_second = build_once("text", dict(reversed(INPUTS.items())), never)
    assert first == second == home / "store" / "text" / content_key(INPUTS)
    assert (reused_first, reused_second) == (False, True)
    assert verify(first)["made_by"]["data"] == INPUTS["data"]
    other, reused = build_once("text", INPUTS | {"seed": 1}, fill)
    assert other != first and not reused


def builder(marks: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, str(PROGRAMS / "build_slowly.py"), str(marks), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_process_killed_while_building_leaves_no_artifact_and_the_next_one_builds_it(
    home: Path, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    process = builder(marks, 60)
    try:
        deadline = time.monotonic() + 30
        while not marks.exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    final = home / "store" / "text" / content_key({"seed": 0})
    left = [path for path in final.parent.iterdir() if path.is_dir()]
    assert not final.exists() and len(left) == 1, "killed in the middle: only the folder beside is there"

    folder, reused = build_once("text", {"seed": 0}, fill)
    assert folder == final and not reused
    assert set(verify(folder)["files"]) == {"a.bin", "deep/er/b.json"}
    assert [path for path in final.parent.iterdir() if path.is_dir()] == [final]


@pytest.mark.slow
def test_processes_that_want_the_same_at_once_all_get_it_and_one_builds_it(home: Path, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    processes = [builder(marks, 1.5) for _ in range(3)]
    answers = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], answers
    assert marks.read_text() == "built\n"
    final = home / "store" / "text" / content_key({"seed": 0})
    files = ["a.bin", "b.bin", MANIFEST]
    assert sorted(out.strip() for out, _ in answers) == sorted(
        f"{final} {reused} {files}" for reused in (False, True, True)
    )
    verify(final)


# --- copies ---


def test_a_copy_has_every_file_and_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    with publishing(source, "text", {}) as aside:
        fill(aside)
    for _ in range(2):
        copy_to(source, target)
        assert tree(target) == tree(source) and verify(target)
        (target / "stray").write_text("from before")
    shutil.rmtree(target)
    assert verify(source)


def test_a_copy_to_another_file_system_works_too(tmp_path: Path) -> None:
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("one file system only")
    source, target = tmp_path / "source", shared_memory / f"lfm-test-{os.getpid()}"
    with publishing(source, "text", {}) as aside:
        fill(aside)
    try:
        copy_to(source, target)
        assert tree(target) == tree(source) and verify(target)
    finally:
        shutil.rmtree(target, ignore_errors=True)


# --- writable ---


def test_a_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there" / "yet"
    check_writable(folder)
    check_writable(folder)
    assert folder.is_dir() and not list(folder.iterdir())


def below_a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("x")
    return tmp_path / "file" / "home"


def a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("x")
    return tmp_path / "file"


@pytest.mark.parametrize("place", [below_a_file, a_file, lambda _: Path("/proc/lfm"), lambda _: Path("/proc")])
def test_a_folder_that_cannot_be_written_is_refused_with_the_fix(place: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = place(tmp_path)
    with pytest.raises(InputError, match=rf"cannot write to {folder} \(.+\); set LFM_HOME or --home"):
        check_writable(folder)


def test_a_volume_of_another_user_is_named_with_both_users_and_the_job_that_mends_it() -> None:
    """/dev is a mounted file system of root's, as a new block volume is; the step is user 10001."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        if os.getuid() == 0:
            os.setuid(10001)
        errors = []
        for action in (check_writable, Path.mkdir):
            try:
                action(Path("/dev/lfm"))
            except (InputError, OSError) as error:
                errors.append(str(as_user_error(error)))
        os.write(write, f"{os.getuid()}\n".join(errors).encode())
        os._exit(0)
    os.waitpid(child, 0)
    text = os.read(read, 10_000).decode()
    of_step = text.split("\n")
    assert len(of_step) == 2
    for line in of_step:
        assert "/dev is of user 0 and group 0, this is user " in line and "Job lfm-volume" in line
    assert "set LFM_HOME" in of_step[0] and "Permission denied" in of_step[1]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_files_of_an_artifact_are_readable_as_the_umask_allows(tmp_path: Path, mask: int, mode: int) -> None:
    """safetensors writes files for their user alone; a container that serves runs as another."""
    before = os.umask(mask)
    try:
        with publishing(tmp_path / "model", "model", {}) as aside:
            (aside / "weights").touch(mode=0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "model" / "weights").stat().st_mode & 0o777 == mode
