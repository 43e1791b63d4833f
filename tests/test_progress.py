"""What arrives on standard output, also in a pipe of another process."""

import os
import re
import subprocess
import sys
import time

import pytest

from lfm.progress import MARK, bar, say


def redraws(text: str) -> list[str]:
    """The states of the bar, oldest first."""
    return [part for part in text.replace("\n", "\r").split("\r") if part.strip()]


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
    program = "import os; from lfm.progress import say; say('last words'); os._exit(1)"
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=kept)
    assert (done.returncode, done.stdout) == (1, f"{MARK}last words\n")


def test_a_bar_ends_at_all_of_it_with_its_label_and_unit(capsys: pytest.CaptureFixture[str]) -> None:
    with bar(40, "stage 1", "steps") as progress:
        for _ in range(40):
            progress.update()
    out, err = capsys.readouterr()
    states = redraws(out)
    assert err == "" and all(state.startswith(MARK) for state in states)
    assert re.search(r"stage 1 +100% ▕█+▏ 40/40 ?steps", states[-1])
    assert re.search(r"stage 1 +0% ▕ +▏ 0/40 ?steps", states[0])


def test_a_resumed_bar_starts_where_the_work_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with bar(200, "stage 2", "steps", initial=150) as progress:
        progress.update(50)
    states = redraws(capsys.readouterr().out)
    assert " 75% ▕" in states[0] and "150/200" in states[0]
    assert "100% ▕" in states[-1] and "200/200" in states[-1]


def test_a_bar_is_redrawn_at_most_twice_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    with bar(10**9, "stage 1", "steps") as progress:
        while time.monotonic() - began < 1.2:
            progress.update()
    states = redraws(capsys.readouterr().out)
    assert 3 <= len(states) <= 2 + 2 * (time.monotonic() - began), "the first, the last, and two a second"


def test_a_note_is_shown_beside_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with bar(2, "stage 1", "steps") as progress:
        progress.set_postfix_str("loss 0.123 · 5,700 images/s", refresh=False)
        progress.update(2)
    assert "loss 0.123 · 5,700 images/s" in redraws(capsys.readouterr().out)[-1]


def test_a_download_of_unknown_size_has_a_bar_too(capsys: pytest.CaptureFixture[str]) -> None:
    with bar(0, "download", "B") as progress:
        progress.update(5)
    assert redraws(capsys.readouterr().out)[-1].startswith(f"{MARK}download")
