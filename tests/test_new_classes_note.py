"""A model whose tower was trained from scratch cannot place new names, and says so where they are named."""

import json
import shutil
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from torch import Tensor
from typer.testing import CliRunner

from lfm.cli.main import app
from lfm.serving.app import create
from lfm.serving.settings import Settings
from lfm.storage.artifact import publishing
from tests.conftest import Fashion
from tests.serving import png, write_conv4

pytestmark = pytest.mark.slow
NOTES = {
    "random": "trained from scratch and has seen its own classes alone, so it cannot place new names",
    "imagenet-lite0": "places new names little better than chance",
    "openai": "",
}


@pytest.fixture(scope="module")
def scratch(fashion: Fashion, text_CD: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conv4(tmp_path_factory.mktemp("scratch") / "model", fashion, text_CD)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("weights", NOTES)
def test_predict_and_the_server_say_it_where_new_names_come(
    weights: str, named: bool, scratch: Path, fashion: Fashion, tmp_path: Path
) -> None:
    """The same model, but for what it says of where its weights came from."""
    with publishing(tmp_path / "model", "served", {}) as aside:
        shutil.copytree(scratch, aside, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        info = json.loads((aside / "info.json").read_text())
        (aside / "info.json").write_text(json.dumps(info | {"weights": weights}))
    folder, note = tmp_path / "model", NOTES[weights] if named else ""
    (tmp_path / "a.png").write_bytes(png(fashion.test_images[0]))
    more = ["--new-class", "snow leopard"] if named else []
    done = CliRunner().invoke(app, ["predict", str(tmp_path / "a.png"), "--model", str(folder), "--json", *more])
    assert done.exit_code == 0
    assert len(json.loads(done.stdout)["top"]) == 5, "the JSON alone on standard output"
    assert note in done.stderr and ("note:" in done.stderr) == bool(note)
    with TestClient(create(Settings(folder=folder, model="a model", device="cpu"))) as client:
        query = {"new_class": "snow leopard"} if named else {}
        kind_of_body = {"content-type": "image/png"}
        answer = client.post("/predict", params=query, content=png(fashion.test_images[0]), headers=kind_of_body).json()
        said = answer.get("note", "")
        assert note in said and bool(said) == bool(note) and len(answer["predictions"]) == 1
