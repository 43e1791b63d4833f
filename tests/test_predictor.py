"""The predictor, beside the same computation written with numpy and with open_clip's own transform."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from lfm.backbones import openclip
from lfm.backbones.text_encoders import embed
from lfm.config.schema import TextConfig
from lfm.errors import InputError
from lfm.serving.predictor import Predictor
from tests.conftest import Fashion
from tests.serving import GROUPS, write_conv4, write_vit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(fashion: Fashion, text_CD: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conv4(tmp_path_factory.mktemp("conv4") / "model", fashion, text_CD)


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return Predictor(folder, precision="fp32")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    work = tmp_path_factory.mktemp("vit")
    return write_vit(work / "model", work)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_the_likeliest_classes_with_calibrated_probabilities(
    predictor: Predictor, fashion: Fashion, text_CD: Tensor
) -> None:
    images = fashion.test_images[:70]
    x = (images[:, None].astype(np.float32) / 255 - predictor.to.mean[0]) / predictor.to.std[0]
    with torch.no_grad():
        raw = (predictor.model.image(torch.from_numpy(x.astype(np.float32))) @ predictor.model.w.weight.T).numpy()
    cosine = raw / np.linalg.norm(raw, axis=1, keepdims=True) @ text_CD.numpy().T
    chance = softmax(cosine.astype(np.float64) / 0.03)  # the temperature of CALIBRATION
    found = predictor.predict(images, top=3)
    assert found.calibrated.all() and not found.zero_shot.any()
    for n, row in found.iterrows():
        best = np.argsort(-cosine[n])[:3]
        assert [one["label"] for one in row.top] == [predictor.classes[k] for k in best]
        assert [one["probability"] for one in row.top] == pytest.approx(chance[n, best].tolist(), abs=1e-4)
        assert [one["shot_group"] for one in row.top] == [GROUPS[k] for k in best]
        assert (row.label, row.probability) == (row.top[0]["label"], row.top[0]["probability"])
    assert (
        len(set(found.label)) > 5
        and (found.label == np.array(predictor.classes)[fashion.test_labels[:70]]).mean() > 0.6
    )
    assert np.allclose(predictor.probabilities(images), chance, atol=1e-4)


def test_calibration_changes_probabilities_and_no_label(folder: Path, fashion: Fashion, tmp_path: Path) -> None:
    calibrated, plain = Predictor(folder, precision="fp32"), Predictor(folder, precision="fp32")
    plain.temperature = plain.info["temperature"]
    images = fashion.test_images[:300]
    a, b = calibrated.predict(images, 10), plain.predict(images, 10)
    assert [[o["label"] for o in top] for top in a.top] == [[o["label"] for o in top] for top in b.top]
    assert not np.allclose(a.probability, b.probability, atol=0.01)


def test_new_classes_are_weighed_beside_those_of_training(predictor: Predictor, fashion: Fashion) -> None:
    images = fashion.test_images[:20]
    names = ["woollen jumper", "umbrella"]
    new_MD = embed(names, TextConfig(encoder="minilm"))
    unit_ND = predictor.features(images[..., None])
    cosine = (unit_ND @ torch.cat([predictor.model.text_CD, new_MD]).T).numpy().astype(np.float64)
    for n, answer in enumerate(predictor.answers(unit_ND, 12, names)):
        assert [one["label"] for one in answer if one["zero_shot"]] and len(answer) == 12
        by_name = {one["label"]: one for one in answer}
        assert sum(one["probability"] for one in answer) == pytest.approx(1, abs=1e-5)
        expected = softmax(cosine / 0.03)[n]
        for k, name in enumerate([*predictor.classes, *names]):
            assert by_name[name]["probability"] == pytest.approx(expected[k], abs=1e-4)
            assert by_name[name]["zero_shot"] == (name in names)
            assert by_name[name]["shot_group"] == ("zero-shot" if name in names else GROUPS[k])


def test_images_of_any_size_are_fitted_as_open_clip_does_it(vit: tuple[Path, Path]) -> None:
    predictor = Predictor(vit[0], precision="fp32")
    rng, image_tower = np.random.default_rng(0), openclip.image_tower(vit[1])
    transform = open_clip.image_transform(32, is_train=False)
    for shape in ((40, 70, 3), (32, 32, 3), (90, 33)):
        image = Image.fromarray(rng.integers(0, 256, shape, np.uint8))
        with torch.no_grad():
            expected = torch.nn.functional.normalize(image_tower(transform(image)[None]), dim=1)
        assert torch.allclose(predictor.features(predictor.fit(image)[None]), expected, atol=1e-5)
        assert torch.allclose(predictor.features(predictor.fit(np.asarray(image))[None]), expected, atol=1e-5)
    assert predictor.predict(rng.integers(0, 256, (2, 50, 60), np.uint8)).calibrated.tolist() == [False, False]


def test_a_model_of_before_serving_artifacts_still_answers(folder: Path, fashion: Fashion, tmp_path: Path) -> None:
    from lfm.storage.artifact import publishing

    with publishing(tmp_path / "old", "model", {}) as aside:
        for name in ("model.safetensors", "info.json"):
            (aside / name).write_bytes((folder / name).read_bytes())
    old = Predictor(tmp_path / "old", precision="fp32")
    found = old.predict(fashion.test_images[:3])
    assert not found.calibrated.any() and found.shot_group.isna().all() and old.temperature == 0.05
    with pytest.raises(InputError, match="registered without its text tower"):
        old.predict(fashion.test_images[:3], new_classes=["owl"])


def test_what_cannot_be_classified_is_refused(predictor: Predictor, fashion: Fashion) -> None:
    for images, message in (
        (fashion.test_images[:2].astype(np.float32), "images are float32"),
        (fashion.test_images[0], r"images are uint8 \(28, 28\)"),
        (np.zeros((1, 30, 28), np.uint8), "is 30 x 28; this model takes 28 x 28"),
        (np.zeros((1, 28, 28, 3), np.uint8), "is 28 x 28 x 3; this model takes 28 x 28"),
    ):
        with pytest.raises(InputError, match=message):
            predictor.predict(images)  # type: ignore[arg-type]  # so that it is refused
    with pytest.raises(InputError, match="has 30 x 31 pixels; this model takes 28 x 28"):
        predictor.fit(Image.new("RGB", (31, 30)))
    with pytest.raises(InputError, match="top is 0"):
        predictor.predict(fashion.test_images[:1], top=0)


def test_an_altered_artifact_is_not_served(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    about = json.loads((tmp_path / "copy/served.json").read_text())
    (tmp_path / "copy/served.json").write_text(json.dumps(about | {"groups": ["few"] * 10}))
    with pytest.raises(InputError, match=r"served.json is missing or does not match its checksum"):
        Predictor(tmp_path / "copy")
    assert load_file(folder / "model.safetensors")["text_CD"].shape == (10, 384)
