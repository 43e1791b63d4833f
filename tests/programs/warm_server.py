"""The warm process of tests/warm.py: SOCKET PID.

Runs `lfm` and other programs in forks of itself until the process PID ends.
"""

import atexit
import gc
import importlib
import json
import multiprocessing.forkserver
import multiprocessing.util
import os
import runpy
import select
import shutil
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from lfm.pipelines.fork_server import PREPARATION

MORE = (
    "docker", "matplotlib.pyplot", "open_clip", "pandas", "pyarrow.dataset", "sklearn",
    "transformers.models.bert.modeling_bert", "lfm.cli.main",
)  # fmt: skip


def main(place: Path, session: int) -> None:
    """Import, listen, and fork a watcher for each connection."""
    owner = os.pidfd_open(session)
    folder = Path(__file__).parents[2] / "lfm"
    jobs = [f"lfm.{room}.{path.stem}" for room in ("jobs", "report") for path in sorted((folder / room).glob("*.py"))]
    gc.disable()  # until all is imported, which it would take a quarter longer
    for name in (*MORE, PREPARATION, *(job for job in jobs if not job.endswith("__"))):
        importlib.import_module(name)
    assert threading.active_count() == 1, "a fork has no other threads"
    multiprocessing.util.spawnv_passfds = _fork_server_by_fork(multiprocessing.util.spawnv_passfds)
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the watchers
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        aside = place.with_suffix(".new")
        listener.bind(str(aside))
        listener.listen(64)
        aside.rename(place)  # there once it answers
        while True:
            ready, _, _ = select.select([listener.fileno(), owner], [], [])
            if owner in ready:
                shutil.rmtree(place.parent, ignore_errors=True)
                return
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                os.close(owner)
                _watch(connection)
            connection.close()


def _watch(connection: socket.socket) -> NoReturn:
    """Fork the command, pass signals to it, answer with its exit code; end it with its caller."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, streams, _, _ = socket.recv_fds(connection, 4, 3)
    request = b""
    while len(request) < int.from_bytes(length, "big"):
        request += connection.recv(1 << 20)
    child = os.fork()
    if child == 0:
        connection.close()
        _run(json.loads(request), streams)
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(child)
    while True:
        ready, _, _ = select.select([connection.fileno(), ended], [], [])
        if ended in ready:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            connection.send(bytes([max(code, 0), max(-code, 0)]))
            os._exit(0)
        number = connection.recv(1)
        if number:
            os.kill(child, number[0])
        else:  # the caller was killed
            os.killpg(child, signal.SIGKILL)
            os._exit(0)


def _run(request: dict[str, Any], streams: Sequence[int]) -> NoReturn:
    """In the forked process: what the program does in a fresh one."""
    os.setsid()
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environ"])
    os.chdir(request["cwd"])
    if os.environ.get("PYTHONUNBUFFERED"):
        sys.stdout.reconfigure(line_buffering=True, write_through=True)  # type: ignore[union-attr]
    sys.argv = request["argv"]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = _call()
    threading._shutdown()  # type: ignore[attr-defined]  # as Python's own end: wait for threads, then what was registered
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _call() -> int:
    """Run what argv names; its exit code."""
    from lfm.cli.main import main as lfm

    try:
        if sys.argv[0] == "lfm":
            lfm()
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return 130
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _fork_server_by_fork(spawn: Any) -> Any:
    """Python's fork server starts by fork, too; everything else that multiprocessing spawns, as before."""

    def forked(path: bytes, arguments: Sequence[Any], passed: Sequence[int]) -> int:
        program = str(arguments[-1])
        if "multiprocessing.forkserver" not in program:
            return int(spawn(path, arguments, passed))
        sys.__stdout__.flush()  # type: ignore[union-attr]  # or its steps would say it again
        pid = os.fork()
        if pid == 0:
            _become_fork_server(program, passed)
        return pid

    return forked


def _become_fork_server(program: str, passed: Sequence[int]) -> NoReturn:
    """As in a process just started: none of the caller's files, signal handlers and locks."""
    for path in Path("/proc/self/fd").iterdir():
        if (number := int(path.name)) > 2 and number not in passed:
            with suppress(OSError):  # that of the list itself
                os.close(number)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.forkserver._forkserver.__init__()  # type: ignore[misc]
    try:
        exec(program, {"__name__": "__main__"})
    except BaseException as end:
        if not isinstance(end, SystemExit):
            traceback.print_exc()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
