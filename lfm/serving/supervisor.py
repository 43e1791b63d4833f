"""Worker processes on one socket: one that dies is replaced, all end after what they have begun."""

import multiprocessing
import os
import signal
import tempfile
import time
from contextlib import suppress
from socket import socket
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from lfm.errors import InputError
from lfm.progress import say
from lfm.serving.settings import VARIABLE, Settings

APP = "lfm.serving.app"
COUNTERS = "PROMETHEUS_MULTIPROC_DIR"
HUNG_SECONDS = 30


class Worker(Process):
    """uvicorn's worker, but forked from a process that has imported PyTorch and the rest, which takes seconds."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket]) -> None:
        super().__init__(config, sockets)
        fork = multiprocessing.get_context("forkserver").Process
        self.process: Any = fork(target=_work, args=(config, self.target, sockets))


def _work(config: uvicorn.Config, target: Any, sockets: list[socket]) -> None:
    config.configure_logging()
    with suppress(KeyboardInterrupt):
        target(sockets=sockets)


class Workers(Multiprocess):
    """uvicorn's supervisor, but for its kind of workers and the watch over them, which comes by twice a second.

    uvicorn's own waits for each worker's answer in turn, and one that dies meanwhile never answers: nothing is replaced
    until the time for a hung one is over.
    """

    def __init__(self, config: uvicorn.Config, sockets: list[socket]) -> None:
        super().__init__(config, sockets)
        self._asked: dict[int, float] = {}

    def init_processes(self) -> None:
        """Start the workers, and before them the process that they are forked from."""
        multiprocessing.get_context("forkserver").set_forkserver_preload(["__main__", APP])
        for _ in range(self.processes_num):
            self.processes.append(Worker(self.config, self.sockets))
            self.processes[-1].start()

    def keep_subprocess_alive(self) -> None:
        """Replace workers that ended, and those that have not answered for `HUNG_SECONDS`."""
        for place, worker in enumerate(self.processes):
            wrong = "" if self.should_exit.is_set() else self._wrong_with(worker)
            if not wrong:
                continue
            worker.kill()
            worker.join()
            self._asked.pop(worker.pid or 0, None)
            if worker.exitcode == uvicorn.config.STARTUP_FAILURE:  # another one would fail as well
                self.should_exit.set()
                return
            self.processes[place] = Worker(self.config, self.sockets)
            self.processes[place].start()
            say(f"worker {worker.pid} {wrong}; worker {self.processes[place].pid} takes its place")

    def _wrong_with(self, worker: Process) -> str:
        """Why a worker must be replaced; empty for one that does well. Never waits."""
        pid, now = worker.pid or 0, time.monotonic()
        if not worker.process.is_alive():
            code = worker.exitcode or 0
            return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if worker.parent_conn.poll():
            worker.parent_conn.recv()
            self._asked.pop(pid, None)
        if pid not in self._asked:
            worker.parent_conn.send(b"ping")
            self._asked[pid] = now
        return f"has not answered for {HUNG_SECONDS} s" if now - self._asked[pid] > HUNG_SECONDS else ""


def serve(settings: Settings, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT; then take no more, finish what is in flight, and return.

    The socket is this process's: while a worker is replaced, connections wait in it for the next one.

    Args:
        settings: handed to the workers.
        host: address to listen at.
        port: 0 takes a free one.

    Raises:
        InputError: the port is taken, or the workers cannot start.
    """
    config = uvicorn.Config(
        f"{APP}:create", factory=True, host=host, port=port, workers=settings.workers, lifespan="on",
        ws="none", access_log=False, log_level="warning", server_header=False, proxy_headers=False,
        timeout_graceful_shutdown=settings.stop_seconds, timeout_worker_healthcheck=HUNG_SECONDS,
    )  # fmt: skip
    try:
        listening = config.bind_socket()
    except SystemExit as error:
        raise InputError(f"port {port} of {host} cannot be had; choose another with --port") from error
    with tempfile.TemporaryDirectory(prefix="lfm-counters-") as counters:
        os.environ |= {
            VARIABLE: settings.model_copy(update={"supervisor": os.getpid()}).model_dump_json(),
            COUNTERS: counters,
            "OMP_NUM_THREADS": str(settings.threads_each),
        }
        say(f"{settings.model} at http://{host}:{listening.getsockname()[1]}, workers: {settings.workers}")
        workers = Workers(config, [listening])
        workers.run()
    if any(process.exitcode == uvicorn.config.STARTUP_FAILURE for process in workers.processes):
        raise InputError("the workers cannot start; the lines above say why")
