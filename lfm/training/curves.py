"""The curves of a training stage: kept with its checkpoints, sent once, whichever process writes them."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

FOLLOW_SECONDS = 1.0


class Curves:
    """The curves of a stage, kept with its checkpoints so that a resumed run has them whole.

    Args:
        path: a JSON line an epoch.
        send: where each point goes, once.
    """

    def __init__(self, path: Path, send: Callable[[Any, int], None]) -> None:
        self.path, self.send = path, send
        lines = path.read_text().splitlines() if path.exists() else []
        self.points: dict[int, dict[str, float]] = {}
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):  # the line that a killed process was writing
                epoch, values = json.loads(line)
                self.points[epoch] = values

    def replay(self) -> None:
        """Send what is there already."""
        for epoch, values in self.points.items():
            self.send(values, epoch)

    def follow(self) -> None:
        """Send the points that another process has written since."""
        for epoch, values in Curves(self.path, self.send).points.items():
            if epoch not in self.points:
                self.points[epoch] = values
                self.send(values, epoch)

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        """Keep and send a point; an epoch trained again after a resume gives the same one and is not sent twice."""
        if epoch in self.points:
            return
        self.points[epoch] = dict(values)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps([epoch, values]) + "\n")
        self.send(values, epoch)

    def save(self, path: Path) -> None:
        """Write all points."""
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(point) + "\n" for point in self.points.items()))


@contextlib.contextmanager
def following(curves: Curves) -> Iterator[None]:
    """Send the points that other processes write, as they come."""
    done = threading.Event()

    def follow() -> None:
        while not done.wait(FOLLOW_SECONDS):
            curves.follow()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        curves.follow()
