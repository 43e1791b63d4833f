"""The log of a pod, whole: a stream that breaks off is taken up again, no line twice and none lost."""

import math
import time
from collections.abc import Callable, Iterator

POLL_SECONDS = 1.0
MARGIN_SECONDS = 10
"""Asked for again before the last line: lines come some time after the machine of the pod has stamped them."""
LAST_TRIES = 5

Opener = Callable[[int | None, bool], Iterator[bytes]]
"""Opens the log, each line behind its time: (last seconds wanted, None for all; whether to follow) -> its pieces."""


class PodLog:
    """Lines of a log that a server sends with times: kubelet's, of nine digits, so that they compare as text.

    A server cuts streams when it restarts, when a certificate or a connection's time runs out, and may do so in the
    middle of a line. It cannot be asked for a place, only for the last seconds; what is known of those is left out.

    Args:
        opened: opens the log; what it raises, of `broken`, is a broken stream.
        broken: kinds of errors.
    """

    def __init__(self, opened: Opener, broken: tuple[type[Exception], ...]) -> None:
        self.opened, self.broken = opened, broken
        self._last, self._same, self._at = "", 0, 0.0

    def lines(self, over: Callable[[], bool]) -> Iterator[str]:
        """The lines as they come, without their times.

        Args:
            over: whether the program has ended; what it wrote before is still read.
        """
        tries = 0
        while True:
            ended = over()
            try:
                yield from self._new(ended)
                whole = True
            except self.broken:
                whole = False
            tries += ended
            if ended and (whole or tries == LAST_TRIES):
                return
            time.sleep(POLL_SECONDS)

    def _new(self, ended: bool) -> Iterator[str]:
        """The lines of one stream that did not come before."""
        last, same, again = self._last, self._same, bool(self._last)
        for stamp, text in self._stream(ended):
            if again and (stamp < last or (stamp == last and same)):
                same -= stamp == last
                continue
            again = False
            self._same = self._same + 1 if stamp == self._last else 1
            self._last, self._at = stamp, time.monotonic()
            yield text

    def _stream(self, ended: bool) -> Iterator[tuple[str, str]]:
        """Time and text of each whole line of one stream."""
        since = math.ceil(time.monotonic() - self._at) + MARGIN_SECONDS if self._last else None
        rest = b""
        for piece in self.opened(since, not ended):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield _split(line)
        if ended and rest:  # before, a line without an end is cut off, and comes again
            yield _split(rest)


def _split(line: bytes) -> tuple[str, str]:
    stamp, _, text = line.decode(errors="replace").partition(" ")
    return stamp, text
