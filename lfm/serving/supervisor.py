"""Worker processes on one socket: one that dies is replaced, all end after what they have begun."""

import os
import tempfile

import uvicorn
from uvicorn.supervisors import Multiprocess

from lfm.errors import InputError
from lfm.progress import say
from lfm.serving.settings import VARIABLE, Settings

COUNTERS = "PROMETHEUS_MULTIPROC_DIR"
HUNG_SECONDS = 30


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
        "lfm.serving.app:create", factory=True, host=host, port=port, workers=settings.workers, lifespan="on",
        ws="none", access_log=False, log_level="warning", server_header=False, proxy_headers=False,
        timeout_graceful_shutdown=settings.stop_seconds, timeout_worker_healthcheck=HUNG_SECONDS,
    )  # fmt: skip
    try:
        socket = config.bind_socket()
    except SystemExit as error:
        raise InputError(f"port {port} of {host} cannot be had; choose another with --port") from error
    with tempfile.TemporaryDirectory(prefix="lfm-counters-") as counters:
        os.environ |= {
            VARIABLE: settings.model_copy(update={"supervisor": os.getpid()}).model_dump_json(),
            COUNTERS: counters,
            "OMP_NUM_THREADS": str(settings.threads_each),
        }
        say(f"{settings.model} at http://{host}:{socket.getsockname()[1]}, workers: {settings.workers}")
        workers = Multiprocess(config, [socket])
        workers.run()
    if any(process.exitcode == uvicorn.config.STARTUP_FAILURE for process in workers.processes):
        raise InputError("the workers cannot start; the lines above say why")
