"""Local steps in containers of the image, as on a cluster, by `kfp.local.DockerRunner`.

A container sees LFM_HOME, what the configuration reads, and the caller's variables, at the same places and under the
same names as a process of the caller would, so the result of a step does not depend on the runner. Otherwise it is
isolated as on a cluster: the caller's user, a read-only root file system, no capabilities.
"""

import codecs
import io
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import docker
from docker.errors import DockerException, ImageNotFound
from docker.models.containers import Container
from docker.types import DeviceRequest, Mount
from kfp import local

from lfm.config.overrides import flatten
from lfm.config.schema import RunConfig
from lfm.errors import InputError, ended_by
from lfm.jobs.pipeline_run import end_unfinished
from lfm.pipelines.kfp_internals import DOCKER, replaced
from lfm.storage.artifact import home

LABEL = "lfm.pipeline_run"
PASSED = ("AWS_", "HF_", "LFM_", "MLFLOW_", "OMP_NUM_THREADS")
"""Beginnings of the environment variables that a step gets."""
OF_THE_IMAGE = ("LFM_COMMIT", "LFM_IMAGE")
CERTIFICATES = ("AWS_CA_BUNDLE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
"""Variables that name a file with the authorities to trust, as behind a company's proxy."""
TMP = "/tmp"  # noqa: S108  the only folder, besides the mounts, that a step can write to
SECONDS_TO_STOP = 30
# KFP's command is a shell that waits for Python: as process 1 it takes no signal, and does not pass it on.
TERMINATE = "kill -TERM 1 $(cat /proc/1/task/1/children)"


@contextmanager
def docker_steps(image: str, config: RunConfig) -> Iterator[local.DockerRunner]:
    """Run the steps of `kfp.local` as containers of this image.

    Args:
        image: Name and tag of the image; it replaces the image that the components name.
        config: Configuration whose files and folders are mounted read-only.

    Yields:
        Runner for `kfp.local.init`.

    Raises:
        InputError: No Docker daemon answers, the image does not exist, or a folder cannot be mounted.
    """
    gpus = _check(image)
    runner = local.DockerRunner(
        environment=_environment(),
        mounts=_mounts(config),
        working_dir=str(Path.cwd()),
        user=f"{os.getuid()}:{os.getgid()}",
        network_mode="host",  # a server on this machine's loopback address is reached as by any process here
        shm_size="8g",  # a limit, not a reservation; the images of several loading processes pass through it
        read_only=True,
        tmpfs={TMP: "rw,exec,nosuid,mode=1777"},
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        labels={LABEL: os.environ.get("LFM_PIPELINE_RUN", "")},
        device_requests=[DeviceRequest(count=-1, capabilities=[["gpu"]])] if gpus else [],
    )

    # KFP's own function loses the exit code of a step that ends fast (its container is removed before it is asked for)
    # and then reports success, breaks where a chunk of output ends inside a letter, and leaves the container running
    # when it is interrupted itself.
    chosen = image

    def run(client: Any, image: str, command: list[str], volumes: dict[str, Any], **arguments: Any) -> int:
        return _run(client.containers.create(chosen, command, volumes=volumes, **arguments))

    with replaced(DOCKER, run):
        try:
            yield runner
        except (KeyboardInterrupt, SystemExit):
            end_unfinished("KILLED")
            raise


def _check(image: str) -> bool:
    """Whether the daemon can give GPUs to containers.

    Raises:
        InputError: There is no daemon or no image.
    """
    try:
        client = docker.from_env()
        try:
            client.images.get(image)
            return "nvidia" in client.info().get("Runtimes", {})
        finally:
            client.close()
    except ImageNotFound as error:
        raise InputError(f"the image {image} is not on this machine; build it with: make image") from error
    except DockerException as error:
        raise InputError(
            f"no Docker daemon answers ({error}); start it, and let your user reach its socket (group docker)"
        ) from error


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name in CERTIFICATES or (name.startswith(PASSED) and name not in OF_THE_IMAGE)
    }


def _mounts(config: RunConfig) -> list[Mount]:
    """Mounts: LFM_HOME and MLflow's file to write, files of the configuration and certificates to read."""
    tracking = os.environ.get("MLFLOW_TRACKING_URI", "")
    written = {home()}
    if tracking.startswith("sqlite:///"):
        written.add(Path(tracking.removeprefix("sqlite:///")).absolute().parent)
    named = (Path(value).absolute() for value in flatten(config).values() if isinstance(value, str) and value)
    # The images are in the folder of their list.
    read = {place.parent if place.is_file() else place for place in named if place.exists()}
    read |= {Path(os.environ[name]).absolute() for name in CERTIFICATES if os.environ.get(name)}
    for place in written | read:
        if place in (Path("/"), Path(TMP)):
            raise InputError(
                f"{place} cannot be mounted in a container; move what the run needs to a folder of its own"
            )
    return [Mount(str(place), str(place), type="bind") for place in sorted(written)] + [
        Mount(str(place), str(place), type="bind", read_only=True) for place in sorted(read - written)
    ]


def _run(container: Container) -> int:
    """Start a container, print its lines as they come, and remove it: its exit code."""
    try:
        container.start()
        for line in _lines(container.logs(stream=True, follow=True)):
            print(line, end="")  # noqa: T201  what kfp.local does too
        code = int(container.wait()["StatusCode"])
        if code - 128 in signal.valid_signals():
            print(ended_by(code - 128))  # noqa: T201
        return code
    except BaseException:
        with suppress(Exception):  # whatever fails here, the interrupt is what the user should see
            container.exec_run(["sh", "-c", TERMINATE])  # training writes a checkpoint then
            container.wait(timeout=SECONDS_TO_STOP)
        raise
    finally:
        container.remove(force=True)


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines of text from chunks that may end inside a line or a letter; each redraw of a progress bar is a line."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(errors="replace"), translate=True)
    rest = ""
    for chunk in chunks:
        *lines, rest = (rest + decoder.decode(chunk)).split("\n")
        yield from (f"{line}\n" for line in lines)
    if rest:
        yield f"{rest}\n"
