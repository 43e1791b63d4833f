"""Containers for the tests: the daemon, a base image, the project's images, and a user who is not root."""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

import docker
import pytest
from docker.errors import DockerException
from filelock import FileLock

ROOT = Path(__file__).parents[1]
SOMEBODY = 12345
"""A user id that has no name, on this machine or in an image."""


def missing(what: str) -> NoReturn:
    """Skip the test with a loud message; fail in CI, where everything must be there."""
    if os.environ.get("LFM_CI"):
        pytest.fail(f"CI must have it: {what}")
    pytest.skip(f"NOT TESTED, for want of it: {what}")


def connect() -> Iterator[docker.DockerClient]:
    """The daemon's client."""
    try:
        client = docker.from_env()
        client.ping()
    except DockerException as error:
        missing(f"a Docker daemon that answers ({error}); infra/docker/ensure.sh starts one")
    yield client
    client.close()


def base_image() -> Mapping[str, str]:
    """The variable that makes a build stand on Debian's own packages; nothing, where a registry must be reached."""
    if "BASE_IMAGE" in os.environ or os.getuid() != 0:
        return {}
    with FileLock(Path(tempfile.gettempdir()) / "lfm-base.lock"):  # once, however many test processes there are
        done = subprocess.run(
            [ROOT / "infra/docker/base.sh"], stdout=subprocess.PIPE, text=True, timeout=300, check=True
        )
    return {"BASE_IMAGE": done.stdout.strip()}


class Built(NamedTuple):
    """What the build said."""

    image: str
    seconds: int
    log: str


def build(root: Path, target: str = "lfm", **variables: str) -> Built:
    """Run the build script of a source tree."""
    done = subprocess.run(
        [root / "infra/docker/build.sh", target], env={**os.environ, **base_image(), **variables},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    seconds, image = re.findall(r"^built in (\d+) s, \d+ MB:\n(\S+)$", done.stdout, re.MULTILINE)[0]
    return Built(image, int(seconds), done.stdout)


def as_somebody() -> list[str]:
    """What to put before a command so that it runs as a user other than root who may use Docker; nothing for a user.

    The user may also read everything, so that it does not matter where this repository and its environment lie.
    """
    if os.getuid() != 0:
        return []
    group = Path("/var/run/docker.sock").stat().st_gid
    ids = (f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", f"--groups={group}")
    return ["setpriv", *ids, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


def give_away(folder: Path) -> None:
    """Let the user of `as_somebody` write there."""
    if os.getuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, SOMEBODY, SOMEBODY)
