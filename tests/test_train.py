"""The loop: frozen parts, schedule, exact repetition and exact resume."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lfm.backbones.blocks import blocks
from lfm.backbones.device import pick_device, use_bf16
from lfm.backbones.model import LFM, conv4
from lfm.backbones.openclip import build_image_tower
from lfm.backbones.towers import Preprocess
from lfm.config.schema import RunConfig, StageConfig
from lfm.data.images import Images
from lfm.data.prefetch import mixed_images
from lfm.errors import InputError
from lfm.evaluation.inference import image_features, score_split
from lfm.method.mixup import PairBatch
from lfm.storage.artifact import MANIFEST
from lfm.training.batch_size import largest_useful_batch
from lfm.training.batches import pair_sampler
from lfm.training.loop import Stage
from lfm.training.memory import FrozenWeights, recompute_activations
from lfm.training.nonfinite import NonFiniteLossError
from lfm.training.schedule import learning_rate
from tests import warm
from tests.small_stage import CLASSES, COUNTS, config, images, text

REPOSITORY = Path(__file__).parents[1]


def train(
    settings: RunConfig, folder: Path, number: int = 1, model: LFM | None = None
) -> tuple[LFM, list[dict[str, float]]]:
    model = model or LFM(conv4(1, 32, settings.seed), text())
    logged: list[dict[str, float]] = []
    stage = Stage(number, settings, model, images(), images(1), folder, lambda v, _: logged.append(dict(v)), 0.5)
    stage.run()
    return model, logged


def state(model: LFM) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize(("number", "trained", "frozen"), [(1, "image.", "w."), (2, "w.", "image.")])
def test_a_stage_changes_its_part_and_leaves_the_other_bit_for_bit(
    number: int, trained: str, frozen: str, tmp_path: Path
) -> None:
    model = LFM(conv4(1, 32, 0), text())
    before = state(model)
    train(config(), tmp_path, number, model)
    after = state(model)
    assert all(torch.equal(before[k], after[k]) for k in after if k.startswith((frozen, "text_CD")))
    weights = [k for k in after if k.startswith(trained) and k.endswith("weight")]
    assert weights and all(not torch.equal(before[k], after[k]) for k in weights)
    if number == 2:
        assert any("running_mean" in k for k in after)  # so the equality above covered BatchNorm


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ce", "balce", "focal", "ldam", "mms"])
@pytest.mark.parametrize("mixup", ["none", "mixup", "remix", "lfm"])
def test_every_loss_trains_with_every_mixup(loss: str, mixup: str, tmp_path: Path) -> None:
    _, logged = train(config(loss__name=loss, mixup__name=mixup, stage1__epochs=8), tmp_path)
    assert logged[-1]["stage1/loss"] < 0.9 * logged[0]["stage1/loss"]


def test_the_loss_of_a_step_is_the_papers_for_its_pairs(tmp_path: Path) -> None:
    """One step of plain SGD's worth: the logged loss of a one-batch epoch against a by-hand computation."""
    settings = config(stage1__epochs=1, stage1__batch_size=200, train__precision="fp32", train__flip=False)
    fresh = LFM(conv4(1, 32, 0), text())
    fresh.train_stage(1)
    data = images()
    batch = pair_sampler(settings, 1, data.label_N, text(), 0.5, 200).batch(0, 0)
    expected = 0.0
    pixels = data.fetch(torch.arange(len(data))).float() / 255
    mixed = torch.stack(
        [
            (lam * pixels[i] + (1 - lam) * pixels[j] - 0.5) / 0.3
            for (i, j), lam in zip(batch.index_B2.tolist(), batch.lambda_x_B.tolist(), strict=True)
        ]
    )
    logits = fresh(mixed).tolist()
    for row, labels, weights in zip(logits, batch.label_B2.tolist(), batch.weight_B2.tolist(), strict=True):
        z = [v / 0.05 for v in row]
        log_sum = max(z) + math.log(sum(math.exp(v - max(z)) for v in z))
        expected += sum(w * (log_sum - z[k]) for k, w in zip(labels, weights, strict=True)) / len(logits)
    _, logged = train(settings, tmp_path)
    assert logged[0]["stage1/loss"] == pytest.approx(expected, rel=1e-4)


def test_a_run_repeats_bit_for_bit_and_another_seed_does_not(tmp_path: Path) -> None:
    first, logged = train(config(), tmp_path / "a")
    torch.manual_seed(123)
    torch.rand(7)  # global randomness must not matter
    second, again = train(config(), tmp_path / "b")
    other, _ = train(config(seed=1), tmp_path / "c")
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())
    assert [v["stage1/loss"] for v in logged] == [v["stage1/loss"] for v in again]
    assert not torch.equal(first.state_dict()["image.0.weight"], other.state_dict()["image.0.weight"])


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def start(folder: Path, out: Path, stage: int, **values: object) -> subprocess.Popen[str]:
    """A process that trains a stage, with its output in one pipe."""
    settings = [f"{name.replace('__', '.')}={value}" for name, value in values.items()]
    command = [*warm.program("train_stage.py"), str(stage), str(folder), str(out), *settings]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "precision"), [(1, "fp32"), (1, "bf16"), (2, "fp32")])
def test_killed_with_sigkill_and_resumed_training_ends_in_the_same_weights(
    stage: int, precision: str, tmp_path: Path
) -> None:
    values = {"train__precision": precision, "train__checkpoint_steps": 5}
    whole = start(tmp_path / "whole", tmp_path / "whole.safetensors", stage, **values)
    output, _ = whole.communicate(timeout=120)
    assert whole.returncode == 0, output
    for _ in range(2):
        seen = {p.name for p in (tmp_path / "cut").glob("step-*")}
        process = start(tmp_path / "cut", tmp_path / "cut.safetensors", stage, **values)
        deadline = time.monotonic() + 60
        while {p.name for p in (tmp_path / "cut").glob("step-*")} <= seen and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL and not (tmp_path / "cut.safetensors").exists()
    process = start(tmp_path / "cut", tmp_path / "cut.safetensors", stage, **values)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "resumes from step" in output
    expected, found = load_file(tmp_path / "whole.safetensors"), load_file(tmp_path / "cut.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(v, found[k]) for k, v in expected.items())


def test_a_torn_checkpoint_falls_back_to_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = config(train__checkpoint_steps=4)
    whole, _ = train(settings, tmp_path)
    newest = sorted(tmp_path.glob("step-*"))[-1]
    state_file = newest / "state.safetensors"
    state_file.write_bytes(state_file.read_bytes()[:-100])
    resumed, _ = train(settings, tmp_path)
    said = capsys.readouterr().out
    assert "is torn" in said and f"resumes from step {int(newest.name[5:]) - 4}" in said
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in whole.state_dict().items())


def test_only_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    train(config(train__checkpoint_steps=2), tmp_path)
    found = sorted(p.name for p in tmp_path.iterdir())
    assert len(found) == 2 and all((tmp_path / name / MANIFEST).is_file() for name in found)


def test_a_loss_that_is_no_number_stops_with_its_step_its_pairs_and_the_way_on(tmp_path: Path) -> None:
    """Weights that one huge step broke: the next step's loss is no number, for every pair of its batch."""
    broken = {"stage1__lr": 1e38, "stage1__warmup": 0.0, "train__precision": "fp32", "stage1__epochs": 9}
    settings = config(**broken)
    with pytest.raises(NonFiniteLossError, match=r"stage 1 .* step 2 of epoch 1; lower stage1\.lr") as caught:
        train(settings, tmp_path)
    batch = pair_sampler(settings, 1, images().label_N, text(), 0.5, 16).batch(0, 1)
    assert caught.value.index_K2 is not None and torch.equal(caught.value.index_K2, batch.index_B2)
    with pytest.raises(NonFiniteLossError, match=r"weights of stage 1 .* lower stage1\.lr"):
        train(config(**broken, train__checkpoint_steps=1), tmp_path)
    assert not list(tmp_path.glob("step-*")), "broken weights are not kept"


def test_only_the_pairs_whose_loss_is_no_number_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(train__precision="fp32")
    bad = 7

    def spoilt(data: Images, batch: PairBatch, *rest: object) -> Tensor:
        x = mixed_images(data, batch, False)
        return torch.where((batch.index_B2 == bad).any(dim=1)[:, None, None, None], math.inf, x)

    monkeypatch.setattr("lfm.training.loop.mixed_images", spoilt)
    model = LFM(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 32)), text())
    with pytest.raises(NonFiniteLossError) as caught:
        train(settings, tmp_path, model=model)
    index_K2 = caught.value.index_K2
    assert index_K2 is not None and 0 < len(index_K2) < 16 and bool((index_K2 == bad).any(dim=1).all())


def test_another_configuration_does_not_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    train(config(train__checkpoint_steps=4), tmp_path)
    with pytest.raises(InputError, match=r"other values: mixup\.tau .* -> 0\.3, stage1\.lr 0\.002 -> 0\.001; set"):
        train(config(train__checkpoint_steps=4, stage1__lr=1e-3, mixup__tau=0.3), tmp_path)
    train(config(train__checkpoint_steps=3, stage2__lr=1e-5), tmp_path)  # neither changes stage 1's weights


def vit() -> torch.nn.Module:
    """A small ViT of open_clip's."""
    torch.manual_seed(0)
    vision = {"image_size": 12, "layers": 2, "width": 64, "patch_size": 4, "head_width": 32}
    return build_image_tower({"embed_dim": 32, "vision_cfg": vision})


def resnet() -> torch.nn.Module:
    """A small CLIP ResNet: attention pooling, batch norm."""
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None, "head_width": 32}
    return build_image_tower({"embed_dim": 32, "vision_cfg": vision})


def rgb(data: Images, size: int = 0) -> Images:
    to = Preprocess(size, (0.5,) * 3, (0.3,) * 3, "bicubic", "squash")
    return Images(lambda i: data.fetch(i).expand(-1, 3, -1, -1), (3, 12, 12), data.label_N, to, held=True)


def train_vit(folder: Path, **overrides: object) -> LFM:
    model = LFM(vit(), text())
    settings = config(stage1__epochs=1, train__precision="fp32", **overrides)
    Stage(1, settings, model, rgb(images()), rgb(images(1)), folder, lambda v, _: None, 0.5).run()
    return model


@pytest.mark.parametrize("name", ["conv4", "vit", "RN50"])
def test_a_frozen_tower_cast_once_trains_and_is_kept_as_one_cast_in_every_step(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], set[torch.dtype]]:
        torch.manual_seed(0)
        towers = {"conv4": lambda: conv4(1, 32, 0), "vit": vit, "RN50": resnet}
        model = LFM(towers[name](), text())
        data = images() if name == "conv4" else rgb(images(), 32 if name == "RN50" else 0)
        settings = config(stage2__epochs=1, train__precision="bf16", train__checkpoint_steps=3)
        seen: set[torch.dtype] = set()
        for module in model.image.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_pre_hook(lambda module, _: seen.add(module.weight.dtype))
        Stage(2, settings, model, data, data, folder, lambda v, _: None, 0.5).run()
        newest = max(folder.glob("step-*")) / "state.safetensors"
        return state(model), load_file(newest), seen

    once, kept_once, types = trained(tmp_path / "a")
    monkeypatch.setattr("lfm.training.loop.FrozenWeights", lambda tower, cast: FrozenWeights(tower, cast=False))
    each, kept_each, before = trained(tmp_path / "b")
    assert types == {torch.bfloat16} and before == {torch.float32}, "both ways were taken"
    for ours, theirs in ((once, each), (kept_once, kept_each)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(v, theirs[k]) and v.dtype == theirs[k].dtype for k, v in ours.items())


def test_activations_computed_again_give_the_same_weights(tmp_path: Path) -> None:
    kept, again = train_vit(tmp_path / "a"), train_vit(tmp_path / "b", train__recompute=True)
    assert [len(list(blocks(m.image))) for m in (kept, again)] == [2, 2]
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in kept.state_dict().items())
    with pytest.raises(InputError, match="batch norm"):
        train(config(train__recompute=True), tmp_path / "c")


def test_activations_computed_again_are_not_kept() -> None:
    """What autograd holds after the forward pass of ten blocks shrinks to a block's input each."""

    def held(recompute: bool) -> int:
        torch.manual_seed(0)
        tower = torch.nn.Sequential(
            *(
                torch.nn.Sequential(torch.nn.Linear(128, 512), torch.nn.GELU(), torch.nn.Linear(512, 128))
                for _ in range(10)
            )
        )
        if recompute:
            recompute_activations(tower)
        numbers: dict[int, int] = {}

        def keep(value: Tensor) -> Tensor:
            numbers[value.untyped_storage().data_ptr()] = value.numel()
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            tower(torch.randn(64, 128, requires_grad=True)).sum()
        return sum(numbers.values())

    assert held(True) < held(False) / 3


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cc"), reason="torch.compile on a CPU needs a C compiler")
def test_a_compiled_model_trains_as_the_plain_one(tmp_path: Path) -> None:
    def losses(compiled: str) -> list[float]:
        torch.manual_seed(0)
        tower = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(144, 64), torch.nn.GELU(), torch.nn.Linear(64, 32)
        )
        settings = config(stage1__lr=1e-4, train__precision="fp32", train__compile=compiled)
        return [p["stage1/loss"] for p in train(settings, tmp_path / compiled, model=LFM(tower, text()))[1]]

    assert losses("on") == pytest.approx(losses("off"), rel=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "it was compiled"


def test_a_batch_size_found_by_trying_is_the_last_that_fits_and_gains() -> None:
    tried: list[int] = []

    def fits(most: int, seconds: Callable[[int], float] = lambda size: size**0.5) -> Callable[[int], float | None]:
        def step(size: int) -> float | None:
            tried.append(size)
            return seconds(size) if size <= most else None

        return step

    assert largest_useful_batch(fits(200), most=10_000) == 128 and tried == [16, 32, 64, 128, 256]
    assert largest_useful_batch(fits(10_000), most=100) == 64
    assert largest_useful_batch(fits(10_000), most=9) == 9
    # From 64 on a step takes as much longer as it is larger: no gain beyond.
    assert largest_useful_batch(fits(10_000, lambda size: max(64, size) / 64), most=10_000) == 64
    with pytest.raises(InputError, match="batch of 16 images does not fit"):
        largest_useful_batch(fits(8), most=10_000)


def test_a_batch_size_found_by_trying_leaves_no_trace_and_is_kept_for_the_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    automatic = config(stage1__batch_size="auto", train__checkpoint_steps=1, stage1__epochs=2)
    found, _ = train(automatic, tmp_path / "a")
    said = re.search(r"a batch of (\d+) images", capsys.readouterr().out)
    assert said
    plain, _ = train(config(stage1__batch_size=int(said[1]), stage1__epochs=2), tmp_path / "b")
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in found.state_dict().items())
    monkeypatch.setattr("lfm.training.loop.search_batch_size", lambda *_: pytest.fail("searched again"))
    resumed, _ = train(automatic, tmp_path / "a")
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in found.state_dict().items())


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
