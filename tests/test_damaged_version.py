"""A registered model whose files were lost or changed: it is named by its version, and registered again."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from lfm.cli.main import app
from lfm.config.presets import load
from lfm.errors import InputError
from lfm.pipelines.local_run import Result, run_local
from lfm.serving.predictor import Predictor
from lfm.tracking import registration, registry
from tests.conftest import Fashion
from tests.serving import png
from tests.small_run import PRESET, SMALL

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("tables")]


def trained(source: Path) -> Result:
    return run_local(load(PRESET, {**SMALL, "data.source": str(source)}))


def stored(home: Path, uri: str) -> Path:
    """The folder of a version's model artifact, where MLflow keeps it."""
    version = registry.version_of(PRESET, uri.rpartition("/")[2])
    found = [path.parent for path in home.rglob("manifest.json") if version.run in str(path) or "models" in str(path)]
    (folder,) = [path for path in found if (path / "served.json").is_file() and "store" not in path.parts]
    return folder


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))


def lose_a_file(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    return "its model.safetensors is missing or was changed"


def change_a_bit(folder: Path) -> str:
    flip(folder / "model.safetensors")
    return "its model.safetensors is missing or was changed"


def change_the_classes(folder: Path) -> str:
    info = json.loads((folder / "info.json").read_text())
    (folder / "info.json").write_text(json.dumps(info | {"classes": info["classes"][::-1]}))
    return "its info.json is missing or was changed"


def break_the_manifest(folder: Path) -> str:
    (folder / "manifest.json").write_text("{")
    return "its manifest.json is missing or was changed"


def lose_the_folder(folder: Path) -> str:
    shutil.rmtree(folder.parent.parent)
    return "cannot be downloaded|holds no model"


def test_a_damaged_version_is_named_and_registered_again_by_the_same_run(
    home: Path, small_fashion: Path, fashion: Fashion, tmp_path: Path
) -> None:
    assert trained(small_fashion).model_uri == f"models:/{PRESET}/1"
    registry.promote(PRESET, "1", "a test")
    folder = stored(home, f"models:/{PRESET}/1")
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    for damage in (lose_a_file, change_a_bit, change_the_classes, break_the_manifest, lose_the_folder):
        words = damage(folder)
        with pytest.raises(InputError, match=rf"{words}") as caught:
            registration.fetch_model(f"models:/{PRESET}/1", tmp_path / damage.__name__)
        assert registration.damage(f"models:/{PRESET}/1")
        if damage is not lose_the_folder:
            assert f"version 1 of the registered model {PRESET} is damaged" in str(caught.value)
            assert f"`lfm run {PRESET}`" in str(caught.value) and str(tmp_path) not in str(caught.value)
            shutil.rmtree(folder)
            shutil.copytree(kept, folder)
    folder.parent.mkdir(parents=True)
    shutil.copytree(kept, folder)
    with pytest.MonkeyPatch.context() as patch:  # files of this disk are looked at where they are
        patch.setattr(tempfile, "tempdir", str(tmp_path / "no such folder"))
        assert not registration.damage(f"models:/{PRESET}/1"), "it is whole again"

    flip(folder / "model.safetensors")
    (tmp_path / "a.png").write_bytes(png(fashion.test_images[0]))
    done = CliRunner().invoke(app, ["predict", str(tmp_path / "a.png"), "--home", str(home)])
    assert isinstance(done.exception, InputError) and "version 1 of the registered" in str(done.exception)
    again = trained(small_fashion)
    assert again.model_uri == f"models:/{PRESET}/2"
    assert f"warning: version 1 of the registered model {PRESET} is damaged" in again.log.read_text()
    champion = registry.with_alias(PRESET, "champion")
    assert champion and champion.number == "2", "the champion's place goes to the same weights"
    assert champion.tags["lfm.decision"] == "a test" and champion.tags["lfm.train_images"]
    old = registry.version_of(PRESET, "1")
    assert old.tags["lfm.decision"] == "damaged; version 2 has the same weights" and not old.aliases
    fetched = registration.fetch_model(f"models:/{PRESET}@champion".replace("@champion", "/2"), tmp_path / "whole")
    assert Predictor(fetched).classes == Predictor(kept).classes
    assert trained(small_fashion).model_uri == f"models:/{PRESET}/2", "intact: nothing is registered again"
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    assert len(client.search_model_versions(f"name = '{PRESET}'")) == 2
