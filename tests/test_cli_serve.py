"""`lfm predict` on real registries, files and folders; which model is meant when none is named."""

import json
import re
from pathlib import Path

import pytest
from torch import Tensor
from typer.testing import CliRunner

from lfm.cli.main import app
from lfm.errors import InputError
from lfm.serving.predictor import Predictor
from lfm.tracking import registry
from lfm.tracking.client import connect
from tests.conftest import Fashion
from tests.serving import png, write_conv4

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(fashion: Fashion, text_CD: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conv4(tmp_path_factory.mktemp("conv4") / "model", fashion, text_CD)


@pytest.fixture
def photos(fashion: Fashion, tmp_path: Path) -> Path:
    place = tmp_path / "photos"
    (place / "deep").mkdir(parents=True)
    for name, k, form in (("a.png", 0, "png"), ("b.JPG", 1, "jpeg"), ("deep/c.webp", 2, "webp"), ("d.tif", 3, "tiff")):
        (place / name).write_bytes(png(fashion.test_images[k], form))
    (place / "notes.txt").write_text("no image")
    return place


def predict(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_table_for_each_file_of_a_folder(folder: Path, photos: Path, fashion: Fashion) -> None:
    output = predict(photos, "--model", folder, "--top", 3, "--new-class", "snow leopard", "--device", "cpu")
    assert output.startswith(f"{folder}, 10 classes, probabilities calibrated\n")
    blocks = output.split("\n\n")[1:]
    assert [Path(block.split("\n")[0]).name for block in blocks] == ["a.png", "b.JPG", "d.tif", "c.webp"]
    rows = re.findall(r"^ +([\d.]+) %  (.+?)  +(many|medium|few|zero-shot)$", blocks[0], re.MULTILINE)
    (expected,) = Predictor(folder).predict(fashion.test_images[:1], 3, ["snow leopard"]).top
    assert [(label, group) for _, label, group in rows] == [(one["label"], one["shot_group"]) for one in expected]
    assert [float(p) for p, *_ in rows] == pytest.approx([100 * one["probability"] for one in expected], abs=0.06)


def test_json_is_one_object_a_line_and_a_new_class_is_marked(folder: Path, photos: Path) -> None:
    given = (photos / "a.png", photos / "d.tif", "--model", folder, "--top", 100, "--json", "--new-class", "owl")
    rows = [json.loads(line) for line in predict(*given).splitlines()]
    assert [row["image"] for row in rows] == [str(photos / "a.png"), str(photos / "d.tif")]
    for row in rows:
        assert len(row["top"]) == 11 and row["calibrated"] is True
        assert [one["label"] for one in row["top"] if one["zero_shot"]] == ["owl"]


def test_what_is_wrong_is_named(folder: Path, photos: Path, home: Path) -> None:
    (photos / "torn.png").write_bytes((photos / "a.png").read_bytes()[:100])
    (photos / "empty").mkdir()
    for name, message in (("torn.png", "torn.png is truncated or damaged"), ("notes.txt", "notes.txt is no image")):
        done = CliRunner().invoke(app, ["predict", str(photos / name), "--model", str(folder)])
        assert done.exit_code == 1 and message in done.stderr and "error: 1 of 1 image cannot be used" in done.stderr
    for arguments, message in (
        ((photos / "empty", "--model", folder), r"empty holds no image; one ends in .apng"),
        ((photos / "absent.png", "--model", folder), r"absent.png does not exist; give files or folders"),
        ((photos / "a.png", "--model", photos), r"photos holds no model; give models:/NAME@champion"),
        ((photos / "a.png", "--model", folder, "--new-class", "bag"), r"'bag' is named twice, or a class of the model"),
        ((photos / "a.png",), r"there are no registered models in \S+; train one with lfm run"),
        ((photos / "a.png", "--model", "models:/absent@champion"), "unknown registered model 'absent'"),
        ((photos / "a.png", "--model", "models:/absent"), "names no model; write models:/NAME@champion"),
    ):
        with pytest.raises(InputError, match=message):
            predict(*arguments)
    assert not (home / "downloads").exists()


def test_the_model_that_is_meant(home: Path) -> None:
    client = connect()
    run = client.create_run(client.create_experiment("e", artifact_location=str(home))).info.run_id

    def register(name: str) -> None:
        client.create_model_version(name, str(home), run)

    client.create_registered_model("birds")
    register("birds")
    register("birds")
    assert registry.only_one() == "models:/birds/2", "the newest of the only model"
    registry.promote("birds", "1", "a test")
    assert registry.only_one() == "models:/birds/1" == registry.resolve("models:/birds@champion")
    assert registry.resolve("models:/birds/2") == "models:/birds/2"
    client.create_registered_model("fish")
    register("fish")
    assert registry.only_one() == "models:/birds/1", "the only champion"
    registry.promote("fish", "1", "a test")
    with pytest.raises(InputError, match=r"several models; choose one with --model: models:/birds/1, models:/fish/1"):
        registry.only_one()
    with pytest.raises(InputError, match="birds has no challenger; name a version, as in models:/birds/2"):
        registry.resolve("models:/birds@challenger")
    with pytest.raises(InputError, match="birds has no version 7; it has 2, 1"):
        registry.resolve("models:/birds/7")
