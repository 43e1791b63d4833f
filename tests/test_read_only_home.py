"""`lfm predict` and `lfm serve` with a home that cannot be written, as a volume that is mounted read-only."""

import base64
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from torch import Tensor

from lfm.serving.predictor import Predictor
from lfm.tracking import pipeline_run, registration, registry
from lfm.tracking.membership import KEY_VARIABLE
from tests.conftest import Fashion
from tests.serving import LFM_COMMAND, Server, png, write_conv4

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(fashion: Fashion, text_CD: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """With a registered champion; its name has characters that an address gives a meaning."""
    work = tmp_path_factory.mktemp("read-only") / "a home"
    folder = write_conv4(work / "model", fashion, text_CD)
    example = pd.DataFrame({"image": [base64.b64encode(png(fashion.test_images[0])).decode()]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LFM_HOME", str(work))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv(KEY_VARIABLE, "a-test")
        pipeline_run.begin_pipeline_run("tests", "a run")
        answer = Predictor(folder).predict(fashion.test_images[:1])
        with pipeline_run.step_run("register") as run:
            registration.register_model(run, "small", "a-content", folder, example, answer, "minilm")
        registry.promote("small", "1", "a test")
    yield work
    for path in (work, *work.rglob("*")):
        path.chmod(0o755)


def command(home: Path, *arguments: str) -> list[str]:
    """`lfm` where the home is read-only: on a mount of its own for root, whom permissions do not stop."""
    lfm = [str(LFM_COMMAND), *arguments]
    if os.getuid():
        for path in home.rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)
        home.chmod(0o555)
        return lfm
    place = f"mount --bind '{home}' '{home}' && mount -o remount,ro,bind '{home}'"
    unwritable = f"! touch '{home}/probe' 2>/dev/null"
    return ["unshare", "-m", "sh", "-c", f'{place} && {unwritable} && exec "$@"', "sh", *lfm]


def content(home: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in home.rglob("*") if path.is_file()}


@pytest.mark.parametrize("model", ["", "models:/small@champion", "models:/small/1"])
def test_predict_reads_alone(model: str, home: Path, fashion: Fashion, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(fashion.test_images[0]))
    before = content(home)
    chosen = ["--model", model] if model else []
    done = subprocess.run(
        command(home, "predict", "a.png", "--home", str(home), "--json", *chosen), cwd=tmp_path,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, done.stdout.splitlines())
    expected = Predictor(home / "model").predict(fashion.test_images[:1])
    assert row["label"] == expected.label[0]
    assert content(home) == before and [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_serve_reads_alone(home: Path, fashion: Fashion, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(home, "serve", "--home", str(home), "--port", "0", "--threads", "1"), cwd=tmp_path,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout
        found = re.search(r"models:/small/1 at http://127\.0\.0\.1:(\d+)", process.stdout.readline())
        assert found
        server = Server(int(found[1]), process)
        server.wait_ready()
        status, answer = server.invoke({"inputs": fashion.test_images[:2].tolist()})
        assert status == 200 and len(answer["predictions"]) == 2
    finally:
        process.terminate()
        process.wait(60)
    assert not list(tmp_path.iterdir())


def test_what_writes_says_that_it_cannot(home: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command(home, "promote", "small", "1", "--home", str(home)), cwd=tmp_path, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 2 and "cannot write to" in done.stderr
