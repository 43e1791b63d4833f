"""What has to reach a server that may be down: kept on disk, sent in order by a thread, each at least once.

A folder holds `header.json` (whose it is), `records.jsonl`, one byte in `sent` for each record that arrived, and copies
of files to send; its process holds the lock next to it. What is left when that ends, another sends with `drain`.
"""

import json
import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from lfm.progress import say

Record = dict[str, Any]
Send = Callable[[Record], None]
"""Takes a record there, or raises: RefusedError to be done with it, anything else to be asked again."""
Sender = Callable[[Mapping[str, Any], Path], Send]
"""Makes a `Send` from the header and folder of an outbox."""
HEADER, REFUSED = "header.json", "refused.jsonl"
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
"""Seconds between two tries."""
ARRIVING = 5.0
"""Seconds that a record may take to arrive at a server that took the one before."""


ENDING = 1.0
"""Seconds that closing gives the thread to see that its time is over."""


class RefusedError(Exception):
    """The server answers, and will never take this record."""


class Drained(NamedTuple):
    """How many records arrived, and how many the server will never take; those are kept in `refused.jsonl`."""

    sent: int
    refused: int


class Outbox:
    """Records of this process on their way.

    Args:
        root: folder of all outboxes.
        header: JSON; given to whoever sends what is left.
        sender: of its records.
    """

    def __init__(self, root: Path, header: Mapping[str, Any], sender: Sender) -> None:
        self.folder = root / f"{time.time_ns() // 1000}-{uuid.uuid4().hex[:8]}"  # sorted by name: the oldest first
        root.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(_lock_of(self.folder), thread_local=False)  # the thread that sends lets it go
        self._lock.acquire()
        self.folder.mkdir()
        (self.folder / HEADER).write_text(json.dumps(header))
        self._send = sender(header, self.folder)
        self._waiting: deque[Record] = deque()
        self._change = threading.Condition()
        self._until: float | None = None
        self._arrived = 0.0
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Keep a record, and send it when its turn comes."""
        with self._change:
            with (self.folder / "records.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
            self._waiting.append(record)
            self._change.notify_all()

    def copy(self, path: Path) -> str:
        """Keep a copy of a file or folder for a record to name, by its place in the outbox."""
        target = self.folder / uuid.uuid4().hex[:8] / path.name
        target.parent.mkdir()
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            shutil.copyfile(path, target)
        return str(target.relative_to(self.folder))

    def flush(self, patience: float) -> bool:
        """Wait until all has arrived, at most so many seconds after something last did; whether it has."""
        begun = time.monotonic()
        with self._change:
            self._change.notify_all()
            while self._waiting:
                left = max(begun, self._arrived) + patience - time.monotonic()
                if left <= 0:
                    return False
                self._change.wait(left)
        return True

    def close(self, patience: float) -> int:
        """Send what waits and end; the number of records left, which stay on disk.

        Args:
            patience: seconds to go on after the last time that something arrived.
        """
        with self._change:
            self._until = time.monotonic() + patience
            self._change.notify_all()
        while self._thread.is_alive() and time.monotonic() < self._until:
            self._thread.join(0.05)
        # Only a record on its way to a server that says nothing keeps it longer, and the lock with it: nobody else
        # may send what it may yet send.
        self._thread.join(ENDING)
        left = len(self._waiting)
        if not left:
            _remove(self.folder)
        return left

    def _work(self) -> None:
        try:
            self._send_all()
        finally:
            self._lock.release()

    def _send_all(self) -> None:
        pause = FIRST_PAUSE
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._until is not None)
                if not self._waiting:
                    return
                record = self._waiting[0]
            try:
                _deliver(self.folder, record, self._send)
            except Exception as error:  # whatever it is, the record is on disk
                self.error = error
                with self._change:
                    left = pause if self._until is None else self._until - time.monotonic()
                    self._change.wait(max(0.0, min(pause, left)))
                    if self._until is not None and time.monotonic() >= self._until:
                        return
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause, self.error = FIRST_PAUSE, None
            with self._change:
                self._arrived = time.monotonic()
                if self._until is not None:
                    self._until = max(self._until, self._arrived + ARRIVING)
                self._waiting.popleft()
                self._change.notify_all()


def drain(
    root: Path,
    sender: Sender,
    last: Callable[[Send, bool], None],
    ours: Callable[[Mapping[str, Any]], bool] = lambda header: True,
    refused: Path | None = None,
) -> Drained:
    """Send what ended processes left behind, the oldest first.

    Args:
        root: folder of all outboxes.
        sender: of the records.
        last: called after the last record of each, with whether one of them said that the work had ended.
        ours: by the header, whether the receiver is the one that an outbox is for; another's stays.
        refused: file that keeps what the server refuses; by default in `root`.

    Returns:
        How many records were sent and refused. What cannot be sent raises, and stays with all after it.
    """
    arrived: list[bool] = []
    for folder in _folders(root):
        with suppress(Timeout), FileLock(_lock_of(folder)).acquire(timeout=0):  # held: its process sends itself
            if not (folder / HEADER).is_file():  # killed before its first record
                _remove(folder)
                continue
            header = json.loads((folder / HEADER).read_text())
            if not ours(header):
                continue
            send = sender(header, folder)
            for record in _unsent(folder):
                arrived.append(_deliver(folder, record, send, refused))
            last(send, any(record["do"].startswith("end") for record in _records(folder)))
            _remove(folder)
    return Drained(sum(arrived), len(arrived) - sum(arrived))


def waiting(root: Path) -> int:
    """How many records lie unsent."""
    return sum(count for _, count in left(root))


def left(root: Path) -> Iterator[tuple[Mapping[str, Any], int]]:
    """Of each outbox its header and how many of its records lie unsent."""
    for folder in _folders(root):
        if (folder / HEADER).is_file():
            yield json.loads((folder / HEADER).read_text()), sum(1 for _ in _unsent(folder))


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("*-*") if path.is_dir()) if root.is_dir() else []


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    _lock_of(folder).unlink(missing_ok=True)


def _deliver(folder: Path, record: Record, send: Send, refused: Path | None = None) -> bool:
    """Send a record; whether it arrived rather than was refused."""
    arrived = True
    try:
        send(record)
    except RefusedError as error:
        arrived, refused = False, refused or folder.parent / REFUSED
        say(f"warning: MLflow refuses {record['do']}: {error}; it is kept in {refused}")
        with refused.open("a") as file:
            file.write(json.dumps(record) + "\n")
    with (folder / "sent").open("ab") as file:
        file.write(b".")
    return arrived


def _records(folder: Path) -> Iterator[Record]:
    path = folder / "records.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError):  # the line that a killed process was writing
            yield json.loads(line)


def _unsent(folder: Path) -> Iterator[Record]:
    sent = folder / "sent"
    done = sent.stat().st_size if sent.exists() else 0
    for k, record in enumerate(_records(folder)):
        if k >= done:
            yield record
