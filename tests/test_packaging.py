"""The artifact that is registered: what calibrates it, and what does not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lfm.config.presets import load
from lfm.config.schema import RunConfig
from lfm.data.artifact import read_info
from lfm.data.images import Images, open_split
from lfm.data.validation_images import MIN_IMAGES, fresh
from lfm.jobs.packaging import example_of, served
from lfm.jobs.prepare import backbone_for, dataset_for, embeddings_for
from lfm.serving.predictor import Predictor
from lfm.serving.request import Limits, of_table, pixels_of
from lfm.storage.artifact import publishing
from lfm.training.model_artifact import model_info, new_model
from tests.conftest import write_idx

pytestmark = pytest.mark.slow

LOCAL = {"data.verify": False, "data.max_per_class": 40, "data.imbalance": 8, "train.precision": "fp32"}


def made(config: RunConfig, folder: Path) -> tuple[Path, Path, Path]:
    """Data set, backbone, and a model artifact, trained on all images at once a few times."""
    dataset, _ = dataset_for(config.data, config.model, 0)
    backbone, _ = backbone_for(config.model, 0)
    text, _ = embeddings_for(config.text, dataset, backbone)
    images: Images = open_split(dataset, "train")
    with publishing(folder, "model", {}) as aside:
        net = new_model(config, dataset, text, backbone)
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        x = images.exact(torch.arange(len(images)))
        for _ in range(15):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x) / 0.05, images.label_N).backward()
            optimizer.step()
        save_file({k: v.contiguous() for k, v in net.state_dict().items()}, aside / "model.safetensors")
        about = model_info(config, read_info(dataset), images, str(backbone), [0.1] * 10)
        (aside / "info.json").write_text(json.dumps(about))
    return dataset, backbone, folder


def test_it_is_calibrated_on_validation_images_and_has_all_a_server_needs(
    home: Path, small_fashion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {**LOCAL, "data.source": str(small_fashion), "data.val_per_class": 15, "text.prompt": ["a {}", "the {}"]}
    config = load("fashion-mnist-lt", changes)
    dataset, backbone, model = made(config, tmp_path / "model")
    folder = served(config, str(dataset), str(backbone), str(model))
    assert folder == served(config, str(dataset), str(backbone), str(model)), "made once"
    assert "probabilities calibrated on 150 validation images: temperature 0.05 -> " in capsys.readouterr().out
    predictor, plain = Predictor(folder, precision="fp32"), Predictor(model, precision="fp32")
    assert set(predictor.groups) == {"medium", "few"}
    # The same likelihood, image by image through the other way in.
    val = open_split(dataset, "val")
    pixels = val.fetch(torch.arange(150))[:, 0].numpy()

    def loss(temperature: float) -> float:
        plain.temperature = temperature
        return float(-np.log(plain.probabilities(pixels)[np.arange(150), val.label_N.numpy()]).mean())

    found = predictor.temperature
    assert loss(found) < min(loss(found * 1.05), loss(found / 1.05), loss(0.05))
    assert predictor.calibration is not None
    assert predictor.calibration["after"] == pytest.approx(loss(found), abs=1e-4)
    own = predictor.own
    assert own.fitted and float(own.prior_C.sum()) == pytest.approx(1)
    assert own.prior != [0.1] * 10 == predictor.info["prior"], "fitted, from where training left them"
    cosine_NC = predictor.features(pixels[..., None]) @ predictor.unit_CD.T
    shifted_NC = cosine_NC / own.temperature - own.prior_C.log()  # the images are even
    nll = float(torch.nn.functional.cross_entropy(shifted_NC, val.label_N))
    assert nll == pytest.approx(json.loads((folder / "served.json").read_text())["shift"]["after"], abs=1e-4)
    assert nll <= loss(found) + 1e-4, "one number is a part of what is fitted"
    assert predictor.words is not None and predictor.words.config.prompts == ("a {}", "the {}")
    request = of_table(example_of(str(dataset), 2), None)
    test = open_split(dataset, "test").fetch(torch.arange(2))
    assert np.array_equal(pixels_of(request, predictor, Limits())[..., 0], test[:, 0].numpy())


def test_without_images_of_its_own_it_stays_as_it_was_trained_and_says_so(
    home: Path, small_fashion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load("fashion-mnist-lt", {**LOCAL, "data.source": str(small_fashion), "data.val_per_class": 0})
    dataset, backbone, model = made(config, tmp_path / "model")
    predictor = Predictor(served(config, str(dataset), str(backbone), str(model)))
    assert predictor.calibration is None and predictor.temperature == config.loss.temperature
    assert not predictor.own.fitted and predictor.own.prior == predictor.info["prior"]
    assert (
        f"not calibrated: 0 validation images are in no other split, fewer than {MIN_IMAGES}" in capsys.readouterr().out
    )


def test_images_that_train_or_test_never_calibrate(home: Path, small_fashion: Path) -> None:
    """The first two test images of each class are the last two of its training images, which are held out."""
    from lfm.data.sources.fashion_mnist import read_idx

    names = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz")
    train, label_N, test = (read_idx(small_fashion / name).copy() for name in names)
    for k in range(10):
        held = np.flatnonzero(label_N == k)[-2:]
        test[20 * k // 10 : 20 * k // 10 + 2] = train[held]
    write_idx(small_fashion / names[2], test)
    config = load("fashion-mnist-lt", {**LOCAL, "data.source": str(small_fashion), "data.val_per_class": 6})
    dataset, _ = dataset_for(config.data, config.model, 0)
    val = open_split(dataset, "val").fetch(torch.arange(60))[:, 0].numpy()
    used = {image.tobytes() for image in open_split(dataset, "test").fetch(torch.arange(100))[:, 0].numpy()}
    expected = [n for n in range(60) if val[n].tobytes() not in used]
    assert len(expected) == 40 and fresh(dataset).tolist() == expected
