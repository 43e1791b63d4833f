"""Requests that wait at the same time go through the model together.

Nobody waits for company: while the model is busy requests gather, and the next pass takes as many as fit.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


class Batches:
    """Gathers images for one thread that computes.

    Args:
        compute: (N, H, W, channels) -> N rows.
        largest: most images of a pass, unless one request alone has more.
        observe: called with the images of each pass.
    """

    def __init__(self, compute: Callable[[Pixels], Any], largest: int, observe: Callable[[int], None]) -> None:
        self.compute, self.largest, self.observe = compute, largest, observe
        self._waiting: deque[tuple[Pixels, asyncio.Future[Any]]] = deque()
        self._some = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "model")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Batches":
        self._task = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._thread.shutdown()

    @property
    def alive(self) -> bool:
        """Whether images still go through the model."""
        return self._task is not None and not self._task.done()

    async def __call__(self, pixels: Pixels) -> Any:
        """The rows of these images."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((pixels, done))
        self._some.set()
        return await done

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._some.wait()
            taken = self._take()
            images = np.concatenate([pixels for pixels, _ in taken]) if len(taken) > 1 else taken[0][0]
            self.observe(len(images))
            try:
                rows = await loop.run_in_executor(self._thread, self.compute, images)
            except Exception as error:  # it is theirs who wait, and the next pass may go well
                for _, done in taken:
                    if not done.done():
                        done.set_exception(error)
                continue
            for pixels, done in taken:
                mine, rows = rows[: len(pixels)], rows[len(pixels) :]
                if not done.done():  # its client may have gone
                    done.set_result(mine)

    def _take(self) -> list[tuple[Pixels, asyncio.Future[Any]]]:
        """Requests for one pass, in their order, at least one."""
        taken = [self._waiting.popleft()]
        size = len(taken[0][0])
        while self._waiting and size + len(self._waiting[0][0]) <= self.largest:
            taken.append(self._waiting.popleft())
            size += len(taken[-1][0])
        if not self._waiting:
            self._some.clear()
        return taken
