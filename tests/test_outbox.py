"""The outbox with a real receiver: a file in another folder that is there or is not."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lfm.tracking.outbox import Outbox, Record, Send, drain, waiting
from tests.programs.fill_outbox import to_file
from tests.warm import PROGRAMS


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "server" / "received"


def fill(root: Path, to: Path, *records: Record, patience: float = 0.0) -> int:
    box = Outbox(root, {"to": str(to)}, to_file)
    for record in records:
        box.put(record)
    return box.close(patience)


def received(to: Path) -> list[str]:
    return to.read_text().split()


def test_records_arrive_in_order_and_leave_nothing(tmp_path: Path, to: Path) -> None:
    to.parent.mkdir()
    records = [{"do": "metrics", "n": n} for n in range(200)]
    assert fill(tmp_path / "outbox", to, *records, patience=20) == 0
    assert received(to) == [f"metrics{n}" for n in range(200)]
    assert list((tmp_path / "outbox").iterdir()) == []


def test_a_server_that_comes_back_gets_all(tmp_path: Path, to: Path) -> None:
    box = Outbox(tmp_path / "outbox", {"to": str(to)}, to_file)
    for n in range(5):
        box.put({"do": "metrics", "n": n})
    assert not box.flush(0.3) and isinstance(box.error, FileNotFoundError)
    to.parent.mkdir()
    assert box.flush(30) and box.close(0) == 0
    assert received(to) == [f"metrics{n}" for n in range(5)]


def test_what_is_left_is_sent_later_the_oldest_first_with_its_files(tmp_path: Path, to: Path) -> None:
    root, file = tmp_path / "outbox", tmp_path / "table.txt"
    file.write_text("-content")
    box = Outbox(root, {"to": str(to)}, to_file)
    box.put({"do": "file", "path": box.copy(file)})
    file.unlink()
    assert box.close(0) == 1
    assert fill(root, to, {"do": "end"}) == 1
    assert waiting(root) == 2
    ends: list[bool] = []
    with pytest.raises(FileNotFoundError):
        drain(root, to_file, lambda send, ended: ends.append(ended))
    assert waiting(root) == 2 and not ends
    to.parent.mkdir()
    assert drain(root, to_file, lambda send, ended: ends.append(ended)) == (2, 0)
    assert received(to) == ["file-content", "end"] and ends == [False, True]
    assert list(root.iterdir()) == []


def test_once_closed_it_sends_no_more_and_another_may(tmp_path: Path, to: Path) -> None:
    root = tmp_path / "outbox"
    for n in range(3):
        assert fill(root, to, {"do": "metrics", "n": n}) == 1  # each thread was in its pause between two tries
    to.parent.mkdir()
    time.sleep(1.2)
    assert not to.exists() and waiting(root) == 3
    assert drain(root, to_file, lambda send, ended: None) == (3, 0)
    assert received(to) == ["metrics0", "metrics1", "metrics2"]


def test_a_record_that_is_on_its_way_at_the_end_is_sent_by_nobody_else(tmp_path: Path) -> None:
    root, answered = tmp_path / "outbox", threading.Event()
    arrived: list[Record] = []

    def slow(header: Mapping[str, Any], folder: Path) -> Send:
        def send(record: Record) -> None:
            answered.wait()  # a server that takes its time
            arrived.append(record)

        return send

    box = Outbox(root, {}, slow)
    box.put({"do": "end"})
    assert box.close(0) == 1
    assert drain(root, slow, lambda send, ended: None).sent == 0
    answered.set()
    box._thread.join()
    assert arrived == [{"do": "end"}]
    assert drain(root, slow, lambda send, ended: None).sent == 0 and list(root.iterdir()) == []
    assert len(arrived) == 1


def test_what_the_server_refuses_is_kept_and_the_rest_goes_on(
    tmp_path: Path, to: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to.parent.mkdir()
    assert fill(tmp_path / "outbox", to, {"do": "bad"}, {"do": "end"}, patience=20) == 0
    assert received(to) == ["end"]
    (kept,) = (tmp_path / "outbox").iterdir()
    assert json.loads(kept.read_text()) == {"do": "bad"} and "refuses bad: never" in capsys.readouterr().out


def test_what_was_refused_is_not_counted_as_sent_and_is_kept_where_it_is_wanted(tmp_path: Path, to: Path) -> None:
    root, kept = tmp_path / "outbox", tmp_path / "refused.jsonl"
    assert fill(root, to, {"do": "metrics"}, {"do": "bad"}, {"do": "bad"}) == 3
    to.parent.mkdir()
    assert drain(root, to_file, lambda *_: None, refused=kept) == (1, 2)
    assert received(to) == ["metrics"] and kept.read_text().count("bad") == 2 and list(root.iterdir()) == []


def test_a_killed_process_loses_nothing_and_one_that_lives_is_let_be(tmp_path: Path, to: Path) -> None:
    root = tmp_path / "outbox"
    process = subprocess.Popen(
        [sys.executable, str(PROGRAMS / "fill_outbox.py"), str(root), str(to)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    try:
        assert process.stdout and process.stdout.readline() == "written\n"
        assert drain(root, to_file, lambda *_: None).sent == 0, "its process lives"
    finally:
        process.kill()
        process.wait()
    with next(root.glob("*-*/records.jsonl")).open("a") as file:
        file.write('{"do": "met')  # what it was writing
    to.parent.mkdir()
    until = time.monotonic() + 10
    while drain(root, to_file, lambda *_: None).sent != 100:
        assert time.monotonic() < until
    assert received(to) == [f"metrics{n}" for n in range(100)]
