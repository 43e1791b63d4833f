"""Steps forked from a process that has their imports behave as processes of their own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lfm.errors import ended_by
from tests import warm

PROGRAM = "forked_pipeline.py"


def program(folder: Path, how: str) -> list[str]:
    """The program as a user's shell starts it: its fork server is a fresh process, too."""
    return [sys.executable, str(warm.PROGRAMS / PROGRAM), str(folder / "root"), how]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "PYTHONUNBUFFERED": "1"}


def run(folder: Path, how: str, fresh: bool = False) -> str:
    command = program(folder, how) if fresh else [*warm.program(PROGRAM), str(folder / "root"), how]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "leaked" not in done.stderr, "what was imported once is given back at the end"
    return done.stdout


@pytest.mark.slow
def test_each_step_is_a_process_of_its_own_with_the_current_environment(tmp_path: Path) -> None:
    out = run(tmp_path, "good", fresh=True)
    shown = [line.split() for line in out.splitlines() if line.strip().startswith("pid")]
    assert {line[3] for line in shown} == {"one", "two"} and shown[0][1] != shown[1][1]
    assert all(" ".join(line[5:]) == f"set later cwd {tmp_path}" for line in shown)
    assert out.count("torch was there: True") == 2


@pytest.mark.slow
@pytest.mark.parametrize(("how", "traceback"), [("exit", False), ("raise", True), ("kill", False)])
def test_a_step_that_fails_fails_the_pipeline(how: str, traceback: bool, tmp_path: Path) -> None:
    out = run(tmp_path, how)
    assert "failed:" in out and ("ValueError: a mistake of ours" in out) == traceback


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("SIGSEGV", "crashed with SIGSEGV: a library's own code reached for memory that is not its own. It will most"),
        (
            "SIGABRT",
            "crashed with SIGABRT: a library found its own state broken and gave up; its last words are in the",
        ),
        ("SIGBUS", "crashed with SIGBUS: memory behind a file was not there: mostly /dev/shm or the disk is full"),
        ("SIGILL", "crashed with SIGILL: a library was built for instructions that this CPU lacks: take another build"),
        ("SIGFPE", "crashed with SIGFPE: a library divided by zero"),
        ("SIGKILL", "was ended from outside by SIGKILL, most likely for lack of memory: lower the batch"),
        ("SIGHUP", "was ended from outside by SIGHUP; run again to continue"),
        ("SIGTERM", "was ended from outside by SIGTERM; run again to continue"),
    ],
)
def test_the_words_for_a_signal_say_what_it_means(name: str, words: str) -> None:
    said = ended_by(getattr(signal, name))
    assert said.startswith(f"error: the step {words}")
    assert ("run again to continue" in said) == ("from outside" in said)


@pytest.mark.slow
def test_a_step_that_crashes_says_so(tmp_path: Path) -> None:
    out = run(tmp_path, "SIGSEGV")
    assert "error: the step crashed with SIGSEGV" in out and "failed:" in out and "outside" not in out


@pytest.mark.slow
def test_a_step_that_ends_while_others_start_keeps_its_exit_code(tmp_path: Path) -> None:
    assert "failed:" not in run(tmp_path, "many")


@pytest.mark.slow
def test_ctrl_c_takes_the_step_along(tmp_path: Path) -> None:
    process = subprocess.Popen(
        program(tmp_path, "sleep"), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout
    step = 0
    for line in process.stdout:
        if "sleeping" in line:
            step = int(line.split()[-1])
            break
    assert step
    process.send_signal(signal.SIGINT)
    process.wait(30)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{step}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{step}").exists()
