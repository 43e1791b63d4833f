"""The `lfm` command without the wait for its imports: forked from a process that has PyTorch, MLflow and KFP loaded.

Most tests of the command are about what it does with its arguments, not about how Python starts; the imports are then
half of what they take. `lfm()` gives a command for `subprocess` that behaves as the installed one: arguments,
environment, folder, standard streams, signals and exit code are those of the caller. What the tests of the imports
themselves and of the whole way from the shell need is `INSTALLED`.
"""

import functools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from filelock import FileLock

INSTALLED = Path(sys.executable).with_name("lfm")
"""The command as a user has it."""
PROGRAMS = Path(__file__).parent / "programs"
START_SECONDS = 180


def lfm() -> tuple[str, ...]:
    """What to put before the arguments of `lfm`."""
    return *_client(), "lfm"


def program(name: str) -> tuple[str, ...]:
    """What to put before the arguments of a program in tests/programs/."""
    return *_client(), str(PROGRAMS / name)


@functools.cache
def _client() -> tuple[str, ...]:
    """A small program that has others run in the warm process. One such process serves all test workers."""
    session = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    folder = Path(tempfile.gettempdir()) / f"lfm-warm-{session}"
    folder.mkdir(exist_ok=True, mode=0o700)
    socket, log = folder / "socket", folder / "log.txt"
    with FileLock(folder / "lock"):
        if not socket.exists():
            root = str(Path(__file__).parents[1])
            command = [sys.executable, str(PROGRAMS / "warm_server.py"), str(socket), str(session)]
            with log.open("wb") as out:
                server = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd=root,
                    env={**os.environ, "PYTHONPATH": root},
                )  # fmt: skip
            until = time.monotonic() + START_SECONDS
            while not socket.exists():
                if server.poll() is not None or time.monotonic() > until:
                    server.kill()
                    raise RuntimeError(f"the warm process did not start: {log.read_text()[-2000:]}")
                time.sleep(0.05)
    return sys.executable, "-ISs", str(PROGRAMS / "warm_client.py"), str(socket)
