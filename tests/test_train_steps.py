"""Schedule, mixed images, gradients, scores and curves of training."""

import json
import math
import re
import signal
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lfm.backbones.device import pick_device, use_bf16
from lfm.backbones.model import LFM, conv4
from lfm.backbones.openclip import build_image_tower
from lfm.backbones.towers import Preprocess
from lfm.config.schema import StageConfig
from lfm.data.images import Images
from lfm.data.prefetch import mixed_images
from lfm.errors import InputError
from lfm.evaluation.inference import image_features, score_split
from lfm.method.mixup import PairBatch
from lfm.training.loop import Stage
from lfm.training.schedule import learning_rate
from tests.small_stage import CLASSES, COUNTS, config, images, text
from tests.train_cases import start, state, train


def test_learning_rate_warms_up_and_follows_the_cosine_to_the_minimum() -> None:
    stage = StageConfig(lr=2.0, min_lr=0.5, warmup=0.1)
    rates = [learning_rate(stage, step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx([2.0 * (k + 1) / 10 for k in range(10)])
    expected = [0.5 + 0.75 * (1 + math.cos(math.pi * k / 90)) for k in range(91)]
    assert rates[10:] == pytest.approx(expected)
    assert rates[100] == pytest.approx(0.5)
    torch_one = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(torch_one, T_max=50, eta_min=0.5)
    for step in range(50):
        assert learning_rate(StageConfig(lr=2.0, min_lr=0.5), step, 50) == pytest.approx(schedule.get_last_lr()[0])
        torch_one.step()
        schedule.step()


@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_the_cosine_of_the_released_code_steps_once_an_epoch(warmup: float) -> None:
    """As CosineAnnealingLR over the epochs, stepped after each: the last epoch does not get to the minimum."""
    epochs, steps_of_one = 5, 4
    stage = StageConfig(lr=2.0, min_lr=0.002, epochs=epochs, cosine="epoch", warmup=warmup)
    rates = [learning_rate(stage, step, epochs * steps_of_one) for step in range(epochs * steps_of_one)]
    warm = round(warmup * len(rates))
    assert rates[:warm] == pytest.approx([2.0 * (k + 1) / warm for k in range(warm)])
    torch_one = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(torch_one, T_max=epochs, eta_min=0.002)
    for epoch in range(epochs):
        of_epoch = rates[epoch * steps_of_one :][:steps_of_one]
        if not warm:
            assert of_epoch == pytest.approx([schedule.get_last_lr()[0]] * steps_of_one)
        elif epoch * steps_of_one > warm:
            assert len(set(of_epoch)) == 1
            assert of_epoch[0] == learning_rate(stage.model_copy(update={"cosine": "step"}), epoch * steps_of_one, 20)
        torch_one.step()
        schedule.step()


def test_mixed_images_flips_each_image_on_its_own_and_mixes_before_normalising() -> None:
    data = images()
    index = torch.tensor([[0, 50], [3, 90], [41, 2], [10, 10]])
    lam = torch.tensor([0.25, 0.5, 1.0, 0.0])
    seen = set()
    for seed in range(40):
        batch = PairBatch(index, lam, index * 0, torch.ones(4, 2), torch.Generator().manual_seed(seed))
        x = mixed_images(data, batch, flip=True)
        for row in range(4):
            i, j = (data.fetch(torch.tensor([k]))[0, 0].numpy().astype(np.float64) / 255 for k in index[row].tolist())
            matches = [
                (a, b)
                for a in (0, 1)
                for b in (0, 1)
                if np.allclose(
                    x[row, 0].numpy(),
                    (
                        lam[row].item() * (i[:, ::-1] if a else i)
                        + (1 - lam[row].item()) * (j[:, ::-1] if b else j)
                        - 0.5
                    )
                    / 0.3,
                    atol=1e-5,
                )
            ]
            assert matches
            if row == 0:
                seen |= set(matches)
    assert seen == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_scores_equal_a_loop_over_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(train__precision="fp32", shots__many=20, shots__few=6)
    model, data = LFM(conv4(1, 32, 0), text()), images()
    found = score_split(model, data, data.label_N, settings)
    right = dict.fromkeys(range(CLASSES), 0)
    with torch.no_grad():
        for k, label in enumerate(data.label_N.tolist()):
            x = (data.fetch(torch.tensor([k])).float() / 255 - 0.5) / 0.3
            right[label] += int(model(x)[0].argmax()) == label
    assert found["all"] == pytest.approx(100 * sum(right.values()) / sum(COUNTS))
    assert found["few"] == pytest.approx(100 * (right[4] + right[5]) / 8)
    assert found["per_class"] == pytest.approx([100 * right[k] / n for k, n in enumerate(COUNTS)])
    matrix = torch.tensor(found.pop("confusion"))
    assert matrix.diagonal().tolist() == list(right.values()) and matrix.sum(dim=1).tolist() == COUNTS
    assert score_split(model, data, data.label_N, settings, confused=False) == found
    monkeypatch.setattr("lfm.evaluation.inference.CONFUSION_CLASSES", CLASSES - 1)
    assert score_split(model, data, data.label_N, settings) == found


@pytest.mark.parametrize("number", [1, 2])
def test_a_step_in_small_pieces_is_the_same_step(number: int, tmp_path: Path) -> None:
    """With a tower that looks at each image by itself: batch norm would see the pieces."""

    def end(micro_batch: int) -> LFM:
        torch.manual_seed(0)
        tower = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 32), torch.nn.Tanh())
        sizes = {"stage1__micro_batch": micro_batch, "stage2__micro_batch": micro_batch}
        values = config(train__precision="fp32", **sizes)
        model, _ = train(values, tmp_path / str(micro_batch), number, LFM(tower, text()))
        return model

    whole, pieces = end(0), end(5)  # 16 = 5 + 5 + 5 + 1
    for name, value in whole.state_dict().items():
        assert torch.allclose(value, pieces.state_dict()[name], atol=2e-5), name


def test_gradients_are_clipped_to_the_norm_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def spy(self: torch.optim.AdamW, *args: object, **more: object) -> object:
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.cat(gradients).norm()))
        return step(self, *args, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    train(config(stage1__epochs=2, train__precision="fp32"), tmp_path / "free")
    largest = max(norms)
    norms.clear()
    train(config(stage1__epochs=2, stage1__clip=largest / 3, train__precision="fp32"), tmp_path / "clipped")
    assert max(norms) == pytest.approx(largest / 3, rel=1e-4)


def test_features_kept_in_stage_2_score_as_the_images_do() -> None:
    settings = config(train__precision="fp32")
    model, data = LFM(conv4(1, 32, 0), text()), images()
    kept = image_features(model, data, settings)
    assert kept.shape == (len(data), 32)
    torch.nn.init.orthogonal_(model.w.weight)
    assert score_split(model, data, data.label_N, settings, kept) == score_split(model, data, data.label_N, settings)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_training_resumes_to_the_same_weights(
    number: signal.Signals, tmp_path: Path
) -> None:
    values = {"train__precision": "fp32", "train__checkpoint_minutes": 1e9, "stage1__epochs": 80}
    whole = start(tmp_path / "a", tmp_path / "whole.safetensors", 1, **values)
    output, _ = whole.communicate(timeout=120)
    assert whole.returncode == 0, output
    process = start(tmp_path / "b", tmp_path / "never", 1, **values)
    assert process.stdout
    seen = ""
    while "0%" not in seen:  # the bar: the loop has begun, and with it the handler
        seen += process.stdout.read(1)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0, seen + output
    assert re.search(r"was asked to stop at step (\d+); it resumes from step \1\b", output), seen + output
    assert len(list((tmp_path / "b").glob("step-*"))) == 1 and not (tmp_path / "never").exists()
    again = start(tmp_path / "b", tmp_path / "again.safetensors", 1, **values)
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 0 and "resumes from step" in output
    first, second = load_file(tmp_path / "whole.safetensors"), load_file(tmp_path / "again.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_devices_are_checked_before_training() -> None:
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(InputError, match=r"train\.device 'toaster' is no device"):
        pick_device("toaster")
    with pytest.raises(InputError, match="this machine has"):
        pick_device(f"cuda:{torch.cuda.device_count()}")
    assert use_bf16("bf16", torch.device("cpu")) and not use_bf16("fp32", torch.device("cpu"))


def test_curves_come_once_an_epoch_with_validation_where_asked(tmp_path: Path) -> None:
    _, logged = train(config(train__validate_every=2, stage1__epochs=5), tmp_path)
    assert len(logged) == 5
    assert ["stage1/val/all" in v for v in logged] == [False, True, False, True, True]
    assert json.dumps(logged)  # plain numbers


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RN50", "ViT-B-32"])
def test_an_open_clip_tower_trains_in_stage_1_and_stands_still_in_stage_2(name: str, tmp_path: Path) -> None:
    """The real architectures of the paper; RN50's batch norm keeps running statistics, which must not drift."""
    package = Path(find_spec("open_clip").origin).parent  # type: ignore[union-attr]
    architecture = json.loads((package / "model_configs" / f"{name}.json").read_text())
    torch.manual_seed(0)
    tower = build_image_tower(architecture)
    dim = architecture["embed_dim"]
    text_CD = torch.nn.functional.normalize(torch.randn(3, dim, generator=torch.Generator().manual_seed(1)), dim=1)
    pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    to = Preprocess(224, (0.5,) * 3, (0.3,) * 3, "bicubic", "shortest")
    data = Images(lambda i: pixels[i], (3, 32, 32), torch.tensor([0, 0, 0, 0, 1, 1, 1, 2]), to, held=True)
    model = LFM(tower, text_CD)
    settings = config(
        stage1__epochs=1, stage2__epochs=1, stage1__batch_size=4, stage2__batch_size=4, train__precision="fp32"
    )
    seen = [state(model)]
    for number in (1, 2):
        Stage(number, settings, model, data, data, tmp_path / str(number), lambda _, __: None, 0.5).run()
        seen.append(state(model))
    start, first, second = seen
    moved = [{k for k in start if not torch.equal(a[k], b[k])} for a, b in ((start, first), (first, second))]
    assert moved[1] == {"w.weight"}
    assert not moved[0] & {"w.weight", "text_CD"} and len(moved[0]) > 100
    assert name != "RN50" or sum("running_var" in k for k in moved[0]) > 40
