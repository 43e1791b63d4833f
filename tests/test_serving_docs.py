"""Every command of docs/serving.md, run: against a registry with a champion, and a real server."""

import base64
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from lfm.backbones.class_embedder import LONGEST_NAME, MOST_NAMES
from lfm.cli.main import app
from lfm.serving.predictor import Predictor
from lfm.serving.request import MOST_TOP
from lfm.serving.settings import Settings
from lfm.tracking import pipeline_run, registration, registry
from lfm.tracking.membership import KEY_VARIABLE
from tests.s3 import free_ports
from tests.serving import png, serving, write_vit

TEXT = (Path(__file__).parents[1] / "docs" / "serving.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.strip().splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with photos, and a registry whose model custom has a champion; the current one."""
    work = tmp_path_factory.mktemp("place")
    folder, _ = write_vit(work / "model", work)
    rng = np.random.default_rng(0)
    (work / "photos").mkdir()
    for k in range(2):
        (work / "photos" / f"{k}.jpg").write_bytes(png(rng.integers(0, 256, (40, 60, 3), np.uint8), "jpeg"))
    predictor = Predictor(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        patch.setenv("LFM_HOME", str(work / ".lfm"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv(KEY_VARIABLE, "a-test")
        pipeline_run.begin_pipeline_run("tests", "a run")
        example = pd.DataFrame({"image": [base64.b64encode((work / "photos/0.jpg").read_bytes()).decode()]})
        answer = predictor.predict(np.zeros((1, 32, 32, 3), np.uint8))
        with pipeline_run.step_run("register") as run:
            registration.register_model(run, "custom", "a-content", folder, example, answer, "backbone")
        registry.promote("custom", "1", "for the test")
        yield work


@pytest.mark.slow
@pytest.mark.parametrize("command", [c.split("#")[0] for c in COMMANDS if c.startswith("lfm predict")])
def test_predicting(place: Path, command: str) -> None:
    done = CliRunner().invoke(app, shlex.split(command)[1:])
    assert done.exit_code == 0, (done.output, done.exception)
    assert all(str(Path("photos") / f"{k}.jpg") in done.output for k in range(2))
    assert ("zero-shot" in done.output) == ("--new-class" in command)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("curl"), reason="NOT TESTED, for want of curl")
def test_serving_and_asking(place: Path) -> None:
    (start,) = (c for c in COMMANDS if c.startswith("lfm serve"))
    options = shlex.split(start)[2:]
    assert options[:2] == ["--model", "models:/custom@champion"] and options[-2:] == ["--port", "8080"]
    asked = [c for c in COMMANDS if c.startswith("curl")]
    with serving(Path(options[1]), *options[2:-2]) as server:
        assert server.ask("/version")[1]["model"] == "models:/custom/1" and len(server.workers) == 2
        found = []
        for command in asked:
            there = command.replace("127.0.0.1:8080", f"127.0.0.1:{server.port}")
            done = subprocess.run(["bash", "-c", there], capture_output=True, text=True, timeout=60, cwd=place)
            found.append(json.loads(done.stdout)["predictions"])
        for path in re.findall(r"`(?:GET )?(/\w[\w.]*)`", TEXT.split("## Asking")[1].split("## Prob")[0]):
            assert server.ask(path)[0] in (200, 405), path
        fields = set(
            re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`label.*?|`cal.*?|`top`) \|", TEXT, re.MULTILINE)))
        )
        assert set(found[0][0]) == fields
    assert [len(rows) for rows in found] == [1, 2, 1] and len(found[0][0]["top"]) == 3
    assert "snow leopard" in {one["label"] for one in found[1][0]["top"]}
    assert found[2][0]["label"] == found[0][0]["label"]


@pytest.mark.slow
def test_the_python_of_the_document(place: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    file_bytes = (place / "photos/0.jpg").read_bytes()
    given = {
        "mlflow": mlflow, "pandas": pd, "file_bytes": file_bytes, "base64_text": base64.b64encode(file_bytes).decode(),
        "array": np.zeros((50, 40, 3), np.uint8),
    }  # fmt: skip
    find, load, ask = code.strip().splitlines()
    before = dict(os.environ)
    try:
        exec(find, given)
        exec(load, given)
        answer = eval(ask, given)
    finally:
        mlflow.set_tracking_uri(None)
        os.environ.clear()
        os.environ.update(before)
    assert len(answer) == 3 and answer.label[0] == answer.label[1] and set(answer.top.map(len)) == {3}


@pytest.mark.slow
def test_mlflows_own_server_as_it_is_written(place: Path) -> None:
    export, serve = COMMANDS[COMMANDS.index(next(c for c in COMMANDS if c.startswith("mlflow models serve"))) - 1 :][:2]
    assert export.startswith("export ") and serve.endswith("--port 8080")
    (place / ".venv").symlink_to(Path(sys.executable).parents[1])
    (port,) = free_ports(1)
    lines = f"{export}\nexec {serve.replace('8080', str(port))}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "LFM_"))}
    environment["PATH"] = "/usr/bin:/bin"
    server = subprocess.Popen(["bash", "-c", lines], cwd=place, env=environment, start_new_session=True)
    try:
        until = time.monotonic() + 300
        while True:
            try:
                body = json.dumps({"inputs": [base64.b64encode((place / "photos/0.jpg").read_bytes()).decode()]})
                kind = {"Content-Type": "application/json"}
                asked = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body.encode(), kind)
                with urllib.request.urlopen(asked, timeout=60) as reply:
                    (row,) = json.load(reply)["predictions"]
                break
            except urllib.error.URLError:
                assert server.poll() is None and time.monotonic() < until
                time.sleep(0.5)
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)
    assert {one["label"] for one in row["top"]} == {"red", "green", "blue"}


def test_its_limits_are_those_of_the_code() -> None:
    help_ = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    rows = dict(re.findall(r"^\| ([^|]+) \| ([\d,; ]+) \|", TEXT, re.MULTILINE))
    fields = {name: field.default for name, field in Settings.model_fields.items()}
    assert rows == {
        "megabytes of a request": f"{fields['body_mb']:g}",
        "images of a request": str(fields["images"]),
        "million pixels of an image, of a request": f"{fields['megapixels']:g}, {fields['total_megapixels']:g}",
        "seconds to send a request": f"{fields['read_seconds']:g}",
        "classes shown; new classes; characters of a name": f"{MOST_TOP}; {MOST_NAMES}; {LONGEST_NAME}",
        "requests in flight in a worker": str(fields["requests"]),
    }
    assert all(option in help_ for option in re.findall(r"`(--[\w-]+)", TEXT.split("## Limits")[1]))
