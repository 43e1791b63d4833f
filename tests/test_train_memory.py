"""Frozen towers cast once, activations computed again, compiled models, batch sizes found by trying."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lfm.backbones.blocks import blocks
from lfm.backbones.model import LFM, conv4
from lfm.backbones.openclip import build_image_tower
from lfm.backbones.towers import Preprocess
from lfm.data.images import Images
from lfm.errors import InputError
from lfm.training.batch_size import largest_useful_batch
from lfm.training.loop import Stage
from lfm.training.memory import FrozenWeights, recompute_activations
from tests.small_stage import config, images, text
from tests.train_cases import state, train


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
