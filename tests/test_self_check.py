"""A model answers a picture as it did when it was registered, or the installation is refused."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lfm import __version__
from lfm.errors import InputError
from lfm.serving import self_check
from lfm.serving.predictor import SERVED, Predictor
from lfm.storage.artifact import publishing
from tests.conftest import REPOSITORY, Fashion
from tests.serving import png, write_conv4, write_vit

pytestmark = pytest.mark.slow


def with_check(model: Path, folder: Path) -> Path:
    """The model with its answer to the picture, as `lfm.jobs.packaging` keeps it."""
    answer = self_check.kept(Predictor(model, precision="fp32").of_picture())
    with publishing(folder, "served", {}) as aside:
        shutil.copytree(model, aside, dirs_exist_ok=True)
        (aside / "manifest.json").unlink()
        about = json.loads((aside / SERVED).read_text())
        (aside / SERVED).write_text(json.dumps(about | {"check": answer}))
    return folder


@pytest.fixture(scope="module")
def conv4(fashion: Fashion, text_CD: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("conv4")
    return with_check(write_conv4(work / "model", fashion, text_CD), work / "served")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("vit")
    return with_check(write_vit(work / "model", work)[0], work / "served")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["conv4", "vit"])
def test_the_same_code_is_accepted_in_every_precision(
    kind: str, precision: str, request: pytest.FixtureRequest
) -> None:
    predictor = Predictor(request.getfixturevalue(kind), precision=precision)
    assert predictor.bf16 == (precision == "bf16")
    kept: dict[str, Any] = json.loads((request.getfixturevalue(kind) / SERVED).read_text())["check"]
    assert kept["lfm"] == __version__ and kept["commit"]
    assert torch.tensor(kept["unit"]).norm() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("activation", [nn.Mish(), nn.GELU(), nn.LeakyReLU(0.1), nn.ELU()])
def test_another_activation_is_refused(activation: nn.Module, conv4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a later version of the package: the weights fit, and every answer is another."""
    monkeypatch.setattr("lfm.backbones.model.nn.ReLU", lambda inplace: activation)
    message = rf"this installation \(LFM {re.escape(__version__)}, .* off by 0\.\d+, .* \(mlflow models serve\)"
    with pytest.raises(InputError, match=message):
        Predictor(conv4)


def test_another_activation_of_open_clips_is_refused(vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("open_clip.model.nn.GELU", nn.Mish)
    with pytest.raises(InputError, match="computes something else than the model was trained with"):
        Predictor(vit)


def test_another_way_of_preparing_images_is_refused(vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lfm.data.decoding import fitted

    monkeypatch.setattr("lfm.serving.predictor.fitted", lambda image, to: fitted(image, to).rotate(90))
    with pytest.raises(InputError, match="computes something else"):
        Predictor(vit)


def test_a_model_of_before_is_served_without_the_check(fashion: Fashion, text_CD: Tensor, tmp_path: Path) -> None:
    assert Predictor(write_conv4(tmp_path / "model", fashion, text_CD)).classes


def test_predict_and_serve_say_it_in_one_line(conv4: Path, fashion: Fashion, tmp_path: Path) -> None:
    """The installed package is a copy whose conv4 has another activation, in processes of its own."""
    shutil.copytree(REPOSITORY / "lfm", tmp_path / "lfm", symlinks=False)
    changed = tmp_path / "lfm" / "backbones" / "model.py"
    changed.write_text(changed.read_text().replace("nn.ReLU(inplace=True)", "nn.ELU()"))
    (tmp_path / "a.png").write_bytes(png(fashion.test_images[0]))
    for command in (["predict", "a.png", "--model", str(conv4)], ["serve", "--model", str(conv4), "--port", "0"]):
        done = subprocess.run(
            [sys.executable, "-m", "lfm.cli", *command], cwd=tmp_path, env={"PATH": "", "PYTHONPATH": str(tmp_path)},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 2, done.stdout + done.stderr
        assert "computes something else than the model was trained with" in done.stderr + done.stdout
        assert done.stderr.count("\nerror: ") + done.stderr.startswith("error: ") == 1
