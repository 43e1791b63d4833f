"""Towers with dropout and drop path: their draws are a function of seed, stage, step and process, nothing else."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lfm.backbones.model import LFM, conv4
from lfm.backbones.openclip import build_image_tower
from lfm.backbones.towers import Preprocess
from lfm.backbones.weights import fetch
from lfm.config.schema import ModelConfig, RunConfig
from lfm.data.images import Images
from lfm.training.dropout import seeded
from lfm.training.loop import Stage
from lfm.training.task import WorkerTask
from tests.photos import TOWER
from tests.small_stage import CLASSES, COUNTS, config, images, text
from tests.small_task import train as train_task

SIDE = 32
TOWERS: dict[str, dict[str, Any]] = {
    "convnext": {"timm_model_name": "test_convnext", "timm_proj": "linear", "timm_drop_path": 0.3, "image_size": SIDE},
    "vit": {"timm_model_name": "test_vit", "timm_proj": "linear", "timm_drop_path": 0.3, "image_size": SIDE},
    "patches": {"image_size": SIDE, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "patch_dropout": 0.4},
    "head": {"timm_model_name": "test_resnet", "timm_proj": "mlp", "timm_drop": 0.5, "image_size": SIDE},
}


def tower(name: str) -> nn.Module:
    """The tower, the same weights each time, whatever the global state."""
    vision = dict(TOWERS[name])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "vit":  # built for 160 pixels; timm gives it any size
            import timm

            return timm.create_model("test_vit", img_size=SIDE, num_classes=32, drop_path_rate=0.3)
        net = build_image_tower({"embed_dim": 32, "vision_cfg": vision})
        for parameter in net.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.05)
            elif "gamma" in str(parameter.shape):
                nn.init.ones_(parameter)
        return net


def colour_images(seed: int = 0) -> Images:
    """Those of `tests.small_stage` in colour and large enough for these towers."""
    rng = torch.Generator().manual_seed(seed)
    label_N = torch.repeat_interleave(torch.arange(CLASSES), torch.tensor(COUNTS))
    pixels = torch.randint(0, 256, (len(label_N), 3, SIDE, SIDE), generator=rng, dtype=torch.uint8)
    to = Preprocess(0, (0.5,) * 3, (0.3,) * 3, "bicubic", "squash")
    return Images(lambda index_B: pixels[index_B], (3, SIDE, SIDE), label_N, to, held=True)


def trained(name: str, folder: Path, draw: int, **values: object) -> dict[str, Tensor]:
    """Weights after an epoch of stage 1, begun in another global state each time."""
    model = LFM(tower(name), text())
    settings: RunConfig = config(stage1__epochs=1, train__precision="fp32", **values)
    torch.manual_seed(draw)
    before = torch.get_rng_state()
    Stage(1, settings, model, colour_images(), colour_images(1), folder, lambda *_: None, 0.5).run()
    assert torch.equal(torch.get_rng_state(), before), "the global state is as it was"
    return {key: value.clone() for key, value in model.state_dict().items()}


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("name", TOWERS)
def test_two_runs_are_equal_and_another_seed_draws_otherwise(name: str, tmp_path: Path) -> None:
    first = trained(name, tmp_path / "a", draw=1)
    assert equal(first, trained(name, tmp_path / "b", draw=2))
    assert not equal(first, trained(name, tmp_path / "c", draw=1, seed=1))


@pytest.mark.parametrize("name", ["convnext", "vit"])
def test_its_draws_matter(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above would hold for a tower that draws nothing."""
    first = trained(name, tmp_path / "a", draw=1)
    monkeypatch.setattr("lfm.training.loop.seeded", lambda device, *key: seeded(device, "others", *key))
    assert not equal(first, trained(name, tmp_path / "b", draw=1))


@pytest.mark.parametrize("name", ["convnext", "vit"])
def test_a_resumed_run_ends_in_the_same_weights(name: str, tmp_path: Path) -> None:
    whole = trained(name, tmp_path / "whole", draw=1, train__checkpoint_steps=1)
    steps = sorted((tmp_path / "whole").glob("step-*"))
    assert len(steps) == 2 and not (tmp_path / "whole" / "step-000000006").exists()
    (tmp_path / "cut").mkdir()
    steps[0].rename(tmp_path / "cut" / steps[0].name)
    assert equal(whole, trained(name, tmp_path / "cut", draw=7, train__checkpoint_steps=1))


def test_a_step_in_pieces_draws_for_each_piece_and_repeats(tmp_path: Path) -> None:
    pieces = {"stage1__micro_batch": 5}
    first = trained("vit", tmp_path / "a", draw=1, **pieces)
    assert equal(first, trained("vit", tmp_path / "b", draw=2, **pieces))


def test_activations_computed_again_see_the_same_draws(tmp_path: Path) -> None:
    kept = trained("vit", tmp_path / "a", draw=1)
    assert equal(kept, trained("vit", tmp_path / "b", draw=2, train__recompute=True))


def test_towers_that_draw_nothing_train_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def weights(folder: Path) -> dict[str, Tensor]:
        model = LFM(conv4(1, 32, 0), text())
        Stage(1, config(), model, images(), images(1), folder, lambda *_: None, 0.5).run()
        return dict(model.state_dict())

    first = weights(tmp_path / "a")
    monkeypatch.setattr("lfm.training.loop.seeded", lambda device, *key: torch.random.fork_rng(devices=[]))
    assert equal(first, weights(tmp_path / "b"))


@pytest.mark.slow
def test_two_processes_draw_each_for_itself_and_repeat(small_task: WorkerTask, tmp_path: Path) -> None:
    """Each draws for its own images: as one process they would all leave out the same blocks."""
    import json

    vision = {"timm_model_name": "test_convnext", "timm_proj": "linear", "timm_drop_path": 0.5, "image_size": 64}
    (tmp_path / "tower.json").write_text(json.dumps({**TOWER, "vision_cfg": vision}))
    (tmp_path / "backbone").mkdir()
    model = ModelConfig(tower=str(tmp_path / "tower.json"), weights="random")
    fetch(model, 0, tmp_path / "backbone")
    task = replace(
        small_task, backbone=tmp_path / "backbone", config=small_task.config.model_copy(update={"model": model})
    )
    first, again = train_task(task, tmp_path / "a", 2), train_task(task, tmp_path / "b", 2)
    assert equal(first.weights, again.weights)
    alone = train_task(task, tmp_path / "c", 1)
    assert any(not torch.allclose(v, first.weights[k], atol=1e-3) for k, v in alone.weights.items())


def test_the_key_decides_and_the_state_comes_back() -> None:
    cpu = torch.device("cpu")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with seeded(cpu, 0, 1, 5, 0):
        one = torch.rand(4)
    assert torch.equal(torch.rand(4), expected)
    draws = [one]
    for key in ((0, 1, 5, 0), (1, 1, 5, 0), (0, 2, 5, 0), (0, 1, 6, 0), (0, 1, 5, 1)):
        with seeded(cpu, *key):
            draws.append(torch.rand(4))
    assert torch.equal(one, draws[1]) and len({tuple(draw.tolist()) for draw in draws}) == 5
