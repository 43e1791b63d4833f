"""The model against loops and against its layers written out one by one.

Letters in the names give shapes: B images, C classes, D embedding dimensions.
"""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from lfm.backbones.model import LFM, conv4, load_weights
from lfm.errors import InputError


def unit_rows(classes: int, dim: int) -> Tensor:
    return F.normalize(torch.randn(classes, dim, generator=torch.Generator().manual_seed(5)), dim=1)


def batch(channels: int = 1, size: int = 7, side: int = 28) -> Tensor:
    return torch.randn(size, channels, side, side, generator=torch.Generator().manual_seed(6))


def make(channels: int = 1, seed: int = 0, dim: int = 48, classes: int = 6) -> LFM:
    return LFM(conv4(channels, dim, seed), unit_rows(classes, dim))


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def layers(model: LFM) -> list[Any]:
    """Of conv4."""
    return list(model.image.children())


def tower_by_hand(model: LFM, x: Tensor) -> Tensor:
    """conv4 in eval mode, in float64: batch norm as its formula, pooling as maxima and means of windows."""
    convolutions = [layer for layer in layers(model) if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in layers(model) if isinstance(layer, nn.BatchNorm2d)]
    (linear,) = (layer for layer in layers(model) if isinstance(layer, nn.Linear))
    assert [layer.out_channels for layer in convolutions] == [32, 64, 128, 128] and len(norms) == 4
    x = x.double()
    for block, (convolution, norm) in enumerate(zip(convolutions, norms, strict=True)):
        x = F.conv2d(x, convolution.weight.double(), padding=1)
        mean, variance, weight, bias = (
            value.double()[None, :, None, None]
            for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
            if value is not None
        )
        x = ((x - mean) / (variance + 1e-5).sqrt() * weight + bias).clamp(min=0)
        if block < 3:
            side = x.shape[2] // 2
            x = x[:, :, : 2 * side, : 2 * side].unflatten(2, (side, 2)).unflatten(4, (side, 2)).amax((3, 5))
    return x.mean((2, 3)) @ linear.weight.double().T + linear.bias.double()


def settled(model: LFM, channels: int = 1) -> LFM:
    """With running statistics and a W_I that are not those of the start."""
    model.train()
    with torch.no_grad():
        for scale in (1.0, 2.0, 0.5):
            model(batch(channels) * scale + 0.3)
        model.w.weight += torch.randn(model.w.weight.shape, generator=torch.Generator().manual_seed(7)) / 10
    return model.eval()


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32), (1, 8)])
@torch.no_grad()
def test_logits_are_the_cosines_of_w_times_the_tower_and_the_text(channels: int, side: int) -> None:
    model = settled(make(channels), channels)
    x = batch(channels, 4, side)
    logits_BC = model(x)
    feature_BD = tower_by_hand(model, x).tolist()
    w, text = model.w.weight.double().tolist(), model.text_CD.double().tolist()
    assert logits_BC.shape == (4, 6) and logits_BC.dtype == torch.float32
    for b, feature in enumerate(feature_BD):
        turned = [math.fsum(a * v for a, v in zip(row, feature, strict=True)) for row in w]
        length = math.sqrt(math.fsum(v * v for v in turned))
        for c, name in enumerate(text):
            cosine = math.fsum(a * v for a, v in zip(name, turned, strict=True)) / length
            assert -1 <= cosine <= 1
            assert float(logits_BC[b, c]) == pytest.approx(cosine, abs=1e-5)


@torch.no_grad()
def test_logits_stay_within_one_whatever_the_scale_and_reach_it_for_the_text_itself() -> None:
    model = settled(make(dim=6, classes=40))
    for scale in (1e-3, 1.0, 1e3):
        assert float(model(batch() * scale).abs().max()) <= 1 + 1e-6
    nn.init.eye_(model.w.weight)
    nn.init.zeros_(layers(model)[-1].weight)
    for k in (0, 17):
        layers(model)[-1].bias.copy_(3 * model.text_CD[k])
        logits_BC = model(batch())
        assert torch.allclose(logits_BC[:, k], torch.ones(7)) and (logits_BC.argmax(1) == k).all()


@torch.no_grad()
def test_w_starts_as_the_identity_and_changes_nothing() -> None:
    model = make().eval()
    assert torch.equal(model.w.weight, torch.eye(48)) and model.w.bias is None
    x = batch()
    assert torch.allclose(model(x), F.normalize(model.image(x), dim=1) @ model.text_CD.T, atol=1e-6)


def test_the_initial_weights_are_a_function_of_the_seed() -> None:
    first, other = state(make(seed=3)), state(make(seed=4))
    torch.rand(5)  # whatever was drawn before does not matter
    assert same(first, state(make(seed=3)))
    assert not torch.equal(first["image.0.weight"], other["image.0.weight"])


def test_making_a_model_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    make(seed=3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_number_of_weights(channels: int) -> None:
    model = make(channels, dim=384, classes=10)
    widths = [channels, 32, 64, 128, 128]
    convolutions = sum(9 * a * b for a, b in pairwise(widths))
    norms = sum(2 * b for b in widths[1:])
    expected = convolutions + norms + 128 * 384 + 384
    assert sum(p.numel() for p in model.image.parameters()) == expected
    assert channels != 1 or expected == 290_144
    assert sum(p.numel() for p in model.parameters()) == expected + 384**2, "the text is frozen: no parameter"


def test_stage_1_trains_the_tower_alone() -> None:
    model = make()
    trained = model.train_stage(1)
    assert {id(p) for p in trained} == {id(p) for p in model.image.parameters()}
    assert all(p.requires_grad for p in model.image.parameters()) and not model.w.weight.requires_grad
    before = state(model.image)
    model(batch()).sum().backward()
    assert model.w.weight.grad is None and layers(model)[0].weight.grad is not None
    after = state(model.image)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "running" in name or "num_batches" in name}, "batch norm is at work"


def test_stage_2_trains_w_alone_and_the_running_statistics_stand_still() -> None:
    model = settled(make())
    model.train_stage(1)  # from there, as in a run
    trained = model.train_stage(2)
    assert [id(p) for p in trained] == [id(model.w.weight)]
    assert not any(p.requires_grad for p in model.image.parameters()) and model.w.weight.requires_grad
    before, x = state(model), batch() * 5 + 2
    logits_BC = model(x)
    logits_BC.square().sum().backward()
    assert same(state(model), before)
    assert all(p.grad is None for p in model.image.parameters())
    assert model.w.weight.grad is not None and float(model.w.weight.grad.abs().max()) > 0
    single_BC = torch.cat([model(x[b : b + 1]) for b in range(len(x))])
    assert torch.allclose(single_BC, logits_BC, atol=1e-5), "an image does not depend on its batch"


def test_stage_1_after_stage_2_trains_the_tower_again() -> None:
    model = make()
    model.train_stage(2)
    model.train_stage(1)
    assert all(p.requires_grad for p in model.image.parameters()) and not model.w.weight.requires_grad
    assert all(layer.training for layer in layers(model))


@torch.no_grad()
def test_saved_weights_are_the_whole_model(tmp_path: Path) -> None:
    model = settled(make())
    save_file(state(model), tmp_path / "model.safetensors")
    other = LFM(conv4(1, 48, seed=9), torch.zeros(6, 48)).eval()
    load_weights(other, tmp_path / "model.safetensors")
    assert torch.equal(other(batch()), model(batch())) and same(state(other), state(model))


@pytest.mark.parametrize("other", [{"channels": 3}, {"dim": 32}, {"classes": 7}], ids=str)
def test_weights_of_another_shape_are_refused(other: dict[str, int], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(state(make(**other)), path)
    with pytest.raises(InputError, match=rf"{path} holds another model's weights; train again"):
        load_weights(make(), path)


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_weights_with_other_names_are_refused(change: str, tmp_path: Path) -> None:
    path, tensors = tmp_path / "model.safetensors", state(make())
    if change == "missing":
        del tensors["w.weight"]
    else:
        tensors["more"] = torch.zeros(1)
    save_file(tensors, path)
    with pytest.raises(InputError, match="another model's weights"):
        load_weights(make(), path)
