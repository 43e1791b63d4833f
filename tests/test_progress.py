"""What arrives on standard output: in a pipe, as in a pod, and on a terminal."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import pytest

from lfm import progress as module
from lfm.progress import MARK, bar, say
from tests.warm import program


def redraws(text: str) -> list[str]:
    """The states of the bar, oldest first."""
    return [part for part in text.replace("\n", "\r").split("\r") if part.strip()]


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "LFM_BARS"}
    return {**kept, "LFM_HOME": str(folder), "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}


def in_pipe(how: str, folder: Path) -> str:
    """What the program writes to a pipe, carriage returns and all."""
    command = [*program("show_bar.py"), how]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=120, env=environment(folder))
    assert done.returncode == 0
    return done.stdout.decode()


def on_terminal(how: str, folder: Path) -> str:
    """What the program writes to a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    process = subprocess.Popen([*program("show_bar.py"), how], stdout=theirs, env=environment(folder))
    os.close(theirs)
    pieces = []
    with suppress(OSError):  # the end of a terminal
        while piece := os.read(ours, 1 << 16):
            pieces.append(piece)
    os.close(ours)
    assert process.wait(120) == 0
    return b"".join(pieces).decode().replace("\r\n", "\n")  # what a terminal makes of a line's end


@pytest.mark.parametrize(
    ("text", "lines"),
    [("one", ["one"]), ("one\ntwo\n\nfour", ["one", "two", "", "four"]), ("", [""]), ("a│b", ["a│b"])],
)
def test_every_line_that_is_said_bears_the_mark(
    text: str, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    say(text)
    out, err = capsys.readouterr()
    assert out == "".join(f"{MARK}{line}\n" for line in lines) and err == ""


def test_a_line_has_left_the_process_before_it_dies() -> None:
    code = "import os; from lfm.progress import say; say('last words'); os._exit(1)"
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=kept)
    assert (done.returncode, done.stdout) == (1, f"{MARK}last words\n")


# --- a pipe or a file: plain lines ---


@pytest.mark.slow
@pytest.mark.parametrize("how", ["direct", "step"])
def test_in_a_pipe_there_are_lines_and_no_carriage_returns(how: str, tmp_path: Path) -> None:
    output = in_pipe(how, tmp_path)
    lines = [line for line in output.splitlines() if "work" in line]
    mark = MARK if how == "direct" else "  "
    assert "\r" not in output and "▕" not in output
    assert lines[0] == f"{mark}work       0% 0/1,000 pieces"
    assert re.fullmatch(rf"{mark}work     100% 1,000/1,000 pieces, 00:0\d taken", lines[-1])
    assert 3 <= len(lines) <= 22


def test_a_line_comes_with_every_twentieth(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REDRAW_SECONDS", 0.0)
    with bar(1000, "stage 1", "steps") as progress:
        for _ in range(999):
            progress.update()
        progress.set_postfix_str("loss 0.5", refresh=False)
        progress.update()
    lines = capsys.readouterr().out.splitlines()
    assert [int(re.findall(r" (\d+)% ", line)[0]) for line in lines] == list(range(0, 101, 5))
    assert lines[10].startswith(f"{MARK}stage 1   50% 500/1,000 steps, 00:00 left") and lines[-1].endswith(", loss 0.5")


def test_a_line_comes_after_the_longest_wait(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINE_SECONDS", 0.2)
    began = time.monotonic()
    with bar(10**9, "stage 1", "steps") as progress:
        while time.monotonic() - began < 1.1:
            progress.update()
            time.sleep(0.001)
    between = len(capsys.readouterr().out.splitlines()) - 2
    assert 2 <= between <= (time.monotonic() - began) / 0.2


def test_quick_work_says_no_more_than_two_lines_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    with bar(100_000, "decode", "images") as progress:
        for _ in range(100_000):
            progress.update()
    assert 2 <= len(capsys.readouterr().out.splitlines()) <= 2 + (time.monotonic() - began) / 0.5


def test_resumed_work_begins_where_it_was_and_its_pace_is_that_of_now(capsys: pytest.CaptureFixture[str]) -> None:
    with bar(200, "stage 2", "steps", initial=150) as progress:
        time.sleep(1)
        progress.update(25)
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first == f"{MARK}stage 2   75% 150/200 steps"
    assert re.fullmatch(rf"{MARK}stage 2   88% 175/200 steps, 00:0[1-9] left", second)


def test_the_end_is_said_once_with_the_last_note(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REDRAW_SECONDS", 0.0)
    with bar(2, "stage 1", "steps") as progress:
        for loss in (0.5, 0.25):
            progress.update()
            progress.set_postfix_str(f"loss {loss}")
        time.sleep(1.1)  # as a last checkpoint may: the time taken is another then
    with pytest.raises(ValueError, match="full"), bar(4, "decode", "images") as progress:
        progress.update()
        time.sleep(1.1)
        raise ValueError("the disk is full")
    lines = capsys.readouterr().out.splitlines()
    shown = [re.findall(r"(\d+)%", line)[0] for line in lines]
    assert shown == ["0", "50", "100", "0", "25"] and lines[2].endswith(", loss 0.25")


def test_work_that_stops_early_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="full"), bar(4, "decode", "images") as progress:
        progress.update()
        raise ValueError("the disk is full")
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{MARK}decode    25% 1/4 images")


def test_other_processes_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with bar(40, "stage 1", "steps", hidden=True) as progress:
        progress.update(40)
    assert capsys.readouterr() == ("", "")


def test_a_download_of_unknown_size_has_lines_too(capsys: pytest.CaptureFixture[str]) -> None:
    with bar(0, "download", "B") as progress:
        progress.update(5000)
    first, last = capsys.readouterr().out.splitlines()
    assert first == f"{MARK}download 0 B" and last == f"{MARK}download 5,000 B, 00:00 taken"


# --- a terminal: a bar ---


@pytest.mark.slow
@pytest.mark.parametrize("how", ["direct", "step"])
def test_on_a_terminal_one_bar_is_redrawn(how: str, tmp_path: Path) -> None:
    output = on_terminal(how, tmp_path)
    states = [state for state in redraws(output) if "▕" in state]
    assert output.count("\r") >= 3 and "0% ▕ " in states[0]
    assert re.search(r"work +100% ▕█+▏ 1000/1000 pieces", states[-1])
    assert [line.count("▕") > 1 for line in output.split("\n") if "work" in line] == [True], "in one line"
    assert 3 <= len(states) <= 12


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of a local run on a terminal."""
    monkeypatch.setenv("LFM_BARS", "1")


@pytest.mark.usefixtures("bars")
def test_a_bar_ends_at_all_of_it_with_its_label_and_unit(capsys: pytest.CaptureFixture[str]) -> None:
    with bar(40, "stage 1", "steps") as progress:
        for _ in range(40):
            progress.update()
    out, err = capsys.readouterr()
    states = redraws(out)
    assert err == "" and all(state.startswith(MARK) for state in states)
    assert re.search(r"stage 1 +100% ▕█+▏ 40/40 ?steps", states[-1])
    assert re.search(r"stage 1 +0% ▕ +▏ 0/40 ?steps", states[0])


@pytest.mark.usefixtures("bars")
def test_a_resumed_bar_starts_where_the_work_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with bar(200, "stage 2", "steps", initial=150) as progress:
        progress.update(50)
    states = redraws(capsys.readouterr().out)
    assert " 75% ▕" in states[0] and "150/200" in states[0]
    assert "100% ▕" in states[-1] and "200/200" in states[-1]


@pytest.mark.usefixtures("bars")
def test_a_bar_is_redrawn_at_most_twice_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    with bar(10**9, "stage 1", "steps") as progress:
        while time.monotonic() - began < 1.2:
            progress.update()
    states = redraws(capsys.readouterr().out)
    assert 3 <= len(states) <= 2 + 2 * (time.monotonic() - began), "the first, the last, and two a second"


@pytest.mark.usefixtures("bars")
def test_a_note_is_shown_beside_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with bar(2, "stage 1", "steps") as progress:
        progress.set_postfix_str("loss 0.123 · 5,700 images/s", refresh=False)
        progress.update(2)
    assert "loss 0.123 · 5,700 images/s" in redraws(capsys.readouterr().out)[-1]
