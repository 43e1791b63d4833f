"""A disk that is full: one line in every place. The home is on a real file system of four megabytes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.warm import INSTALLED, PROGRAMS

# As a user of a namespace of one's own: no root is needed.
NAMESPACE = ("unshare", "--map-root-user", "--mount")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("unshare") or subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode != 0,
        reason="NOT TESTED, for want of namespaces",
    ),
]
MOUNT = """
mount -t tmpfs -o size={megabytes}m none "$LFM_HOME" && cp "$DATABASE" "$LFM_HOME/mlflow.db" || exit 99
{fill}
exec "$@"
"""


def on_small_disk(
    home: Path, database: Path, *command: str, megabytes: int = 4, full: bool = False
) -> subprocess.CompletedProcess[str]:
    home.mkdir(exist_ok=True)
    fill = 'cat /dev/zero > "$LFM_HOME/filler" 2>/dev/null' if full else ""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "LFM_"))}
    environment |= {
        "LFM_HOME": str(home), "DATABASE": str(database), "LFM_PIPELINE_RUN": "a-run",
        "PYTHONPATH": str(PROGRAMS.parents[1]), "TMPDIR": "/tmp",
    }  # fmt: skip
    script = MOUNT.format(megabytes=megabytes, fill=fill)
    return subprocess.run(
        [*NAMESPACE, "bash", "-c", script, "bash", *command], env=environment, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize("what", ["tags", "texts"])
def test_a_step_that_fills_the_disk_ends_in_one_line(what: str, home: Path, empty_database: Path) -> None:
    done = on_small_disk(home, empty_database, sys.executable, str(PROGRAMS / "fill_the_disk.py"), what)
    assert done.returncode == 2, done.stdout + done.stderr
    full = f"error: the disk under {home} is full; make room or set LFM_HOME, then run again to continue\n"
    assert done.stderr == full and "Traceback" not in done.stdout


@pytest.fixture
def with_model(tmp_path: Path, empty_database: Path) -> Path:
    """A database with a version to promote."""
    path = tmp_path / "with-model.db"
    shutil.copy(empty_database, path)
    client = MlflowClient(f"sqlite:///{path}")
    client.create_registered_model("m")
    client.create_model_version("m", "file:///nowhere")
    return path


@pytest.mark.parametrize(
    "command",
    [["promote", "m", "1"], ["data", "inspect", "fashion-mnist-lt"], ["run", "fashion-mnist-lt"], ["models"]],
    ids=" ".join,
)
def test_a_command_on_a_full_disk_is_one_line(command: list[str], home: Path, with_model: Path) -> None:
    done = on_small_disk(home, with_model, str(INSTALLED), *command, full=True)
    if command == ["models"] and done.returncode == 0:
        assert "models:/m/1" in done.stdout and done.stderr == ""  # it only reads
        return
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.fullmatch(rf"error: [^\n]*{re.escape(str(home))}[^\n]*\n", done.stderr), done.stderr
    assert re.search("is full|No space left on device", done.stderr)
