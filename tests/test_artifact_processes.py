"""Folders that are complete or absent: built once by processes that are killed or come at once; copies."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lfm.errors import InputError
from lfm.jobs.step import as_user_error
from lfm.storage.artifact import (
    MANIFEST,
    check_writable,
    content_key,
    copy_to,
    publishing,
    verify,
)
from lfm.storage.store import build_once
from tests.artifact_cases import INPUTS, fill, tree
from tests.warm import PROGRAMS


def never(folder: Path) -> None:
    raise AssertionError(f"{folder}: built again")


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
