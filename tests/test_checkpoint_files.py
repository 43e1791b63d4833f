"""Checkpoints as programs save them: wrapped, prefixed, beside other things, in folders of open_clip; broken ones."""

import argparse
import json
import shutil
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lfm.backbones import openclip, towers
from lfm.backbones.openclip import embed_prompts, image_tower
from lfm.backbones.weights import fetch, weights_id
from lfm.config.schema import ModelConfig
from lfm.errors import InputError
from tests.test_backbone import PROMPTS, SIGLIP, TEXT, VISION, VIT, fetched, model

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP of random weights."""
    work = tmp_path_factory.mktemp("whole")
    return fetched(work / "clip", model(work, VIT))


@pytest.fixture(scope="module")
def state(whole: Path) -> State:
    return dict(load_file(whole / "model.safetensors"))


def prefixed(*parts: str) -> Callable[[State], State]:
    return lambda state: {".".join([*parts, name]): value for name, value in state.items()}


def lightning(attribute: str) -> Callable[[State], dict[str, Any]]:
    """A LightningModule's checkpoint, of what `Trainer.save_checkpoint` writes."""
    return lambda state: {
        "epoch": 3, "global_step": 70, "pytorch-lightning_version": "2.5.1", "loops": {"fit_loop": {"state_dict": {}}},
        "state_dict": OrderedDict(prefixed(attribute)(state)) | {"loss.margin": torch.ones(3)},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}}], "hyper_parameters": {"lr": 1e-3},
    }  # fmt: skip


def inside(name: str) -> str:
    """torch.compile of the image tower alone, DistributedDataParallel of the text."""
    if name.startswith("visual."):
        return name.replace("visual.", "visual._orig_mod.", 1)
    return name.replace("transformer.", "transformer.module.", 1) if name.startswith("transformer.") else name


FORMS: dict[str, Callable[[State], Any]] = {
    "compiled": prefixed("_orig_mod"),
    "parallel": prefixed("module"),
    "compiled in parallel": prefixed("module", "_orig_mod"),
    "parallel in compiled": prefixed("_orig_mod", "module"),
    "sharded": prefixed("_fsdp_wrapped_module"),
    "parts wrapped": lambda state: {inside(name): value for name, value in state.items()},
    "under model": lambda state: {"model": state, "epoch": 3},
    "under model, named model": lambda state: {"model": prefixed("model")(state), "optimizer": {"lr": 1.0}},
    "under model, compiled, with arguments": lambda state: {
        "model": prefixed("_orig_mod")(state), "args": argparse.Namespace(lr=1e-3, name="x"), "scaler": None,
    },
    "model_state_dict": lambda state: {"model_state_dict": prefixed("module")(state), "loss": 0.1},
    "deepspeed": lambda state: {"module": prefixed("module", "clip")(state), "dp_world_size": 2},
    "state_dict in state_dict": lambda state: {"state_dict": {"model": state}},
    "lightning": lightning("model"),
    "lightning, compiled": lightning("clip._orig_mod"),
    "lightning, another attribute": lightning("net.backbone"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["clip", "custom text"])
def test_every_form_gives_the_same_weights(form: str, kind: str, state: State, tmp_path: Path) -> None:
    torch.save(FORMS[form](state), tmp_path / "w.pt")
    config = VIT if kind == "clip" else {**VIT, "custom_text": True}
    got = load_file(fetched(tmp_path / "out", model(tmp_path, config, str(tmp_path / "w.pt")), 5) / "model.safetensors")
    expected = state if kind == "clip" else openclip.load(tmp_path / "out").state_dict()
    assert got.keys() == expected.keys()
    for name, value in got.items():
        assert torch.equal(value, state[name.removeprefix("text.") if name not in state else name]), name


def test_safetensors_of_a_compiled_model(state: State, tmp_path: Path) -> None:
    save_file(prefixed("_orig_mod", "module")(state), tmp_path / "w.safetensors")
    got = load_file(
        fetched(tmp_path / "out", model(tmp_path, VIT, str(tmp_path / "w.safetensors"))) / "model.safetensors"
    )
    assert all(torch.equal(got[key], value) for key, value in state.items())


def test_lightnings_own_kind_of_settings_is_read_and_what_is_unused_is_said(
    state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its AttributeDict is a class of its package, which need not be there: only its name is in the file."""
    name = "lightning.fabric.utilities.data"
    packages = {name.rsplit(".", k)[0]: types.ModuleType(name.rsplit(".", k)[0]) for k in range(4)}
    settings = type("AttributeDict", (dict,), {"__module__": name})
    vars(packages[name])["AttributeDict"] = settings
    with pytest.MonkeyPatch.context() as patch:
        for place, package in packages.items():
            patch.setitem(sys.modules, place, package)
        torch.save(lightning("model")(state) | {"hyper_parameters": settings(lr=1e-3)}, tmp_path / "last.pth")
    fetched(tmp_path / "out", model(tmp_path, VIT, str(tmp_path / "last.pth")))
    assert "last.pth: the model is under model; 1 other tensors are unused: loss.margin" in capsys.readouterr().out


@pytest.mark.parametrize("other", ["ema", "teacher.model"])
def test_two_models_in_a_file_are_asked_about(other: str, state: State, tmp_path: Path) -> None:
    both = prefixed("student")(state) | prefixed(other)({key: value + 1 for key, value in state.items()})
    torch.save({"state_dict": both}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=rf"w\.pt holds several models, under student\. and {other}\.; save the one"):
        fetched(tmp_path / "out", model(tmp_path, VIT, str(tmp_path / "w.pt")))


def test_a_wrapped_and_a_plain_copy_are_asked_about(state: State, tmp_path: Path) -> None:
    torch.save(state | prefixed("module")(state), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt holds two models, one in a wrapper"):
        fetched(tmp_path / "out", model(tmp_path, VIT, str(tmp_path / "w.pt")))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", ["visual.conv1.weight", "ln_final.bias", "logit_scale"])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_weights_that_are_no_numbers_are_refused_by_name(
    value: float, place: str, kind: torch.dtype, state: State, tmp_path: Path
) -> None:
    broken = {name: tensor.to(kind).clone() for name, tensor in state.items()}
    broken[place].view(-1)[0] = value
    save_file(broken, tmp_path / "w.safetensors")
    count = f"1 of the {broken[place].numel():,} values of {place} are NaN or infinite; the training"
    with pytest.raises(InputError, match=count):
        fetched(tmp_path / "out", model(tmp_path, VIT, str(tmp_path / "w.safetensors")))


def test_many_broken_tensors_are_counted(state: State, tmp_path: Path) -> None:
    torch.save({"model": {name: value * float("nan") for name, value in state.items()}}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=rf"NaN or infinite, and {len(state) - 1} more tensors; .* earlier checkpoint"):
        fetched(tmp_path / "out", model(tmp_path, VIT, str(tmp_path / "w.pt")))


# open_clip's folders


def pushed(folder: Path, whole: Path, weights: str) -> Path:
    """A folder as `open_clip.push_to_hf_hub.save_for_hf` leaves it."""
    folder.mkdir()
    config = json.loads((whole / "config.json").read_text())
    ready = json.loads((whole / "preprocess.json").read_text())
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": ready}))
    state = dict(load_file(whole / "model.safetensors"))
    if weights.endswith(".safetensors"):
        save_file(state, folder / weights)
    elif weights:
        torch.save(state, folder / weights)
    for path in (whole / "tokenizer").glob("*"):
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize("weights", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "epoch_9.pt"])
@pytest.mark.parametrize("named", ["{}", "local-dir:{}"])
def test_a_folder_is_a_tower_with_its_weights(
    named: str, weights: str, whole: Path, state: State, tmp_path: Path
) -> None:
    place = named.format(pushed(tmp_path / "pushed", whole, weights))
    config = ModelConfig(tower=place)
    towers.check(config)
    assert towers.preprocess(config).size == VISION["image_size"]
    folder = fetched(tmp_path / "out", config)
    got = load_file(folder / "model.safetensors")
    assert all(torch.equal(got[key], value) for key, value in state.items())
    assert weights_id(config, 0)["weights"].keys() == {"sha256"}
    alone = ModelConfig(tower=model(tmp_path, VIT).tower, weights=place)
    assert weights_id(alone, 0)["weights"] == weights_id(config, 0)["weights"], "of the weights alone too"
    drawn = fetched(tmp_path / "drawn", ModelConfig(tower=place, weights="random"), 3)
    assert not torch.equal(load_file(drawn / "model.safetensors")["visual.conv1.weight"], state["visual.conv1.weight"])


def test_a_folder_brings_its_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration names one of the hub, as a pushed SigLIP does, which cannot be reached."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    first = fetched(tmp_path / "first", model(tmp_path / "a", SIGLIP))
    folder = pushed(tmp_path / "pushed", first, "open_clip_model.safetensors")
    written = json.loads((folder / "open_clip_config.json").read_text())
    written["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "timm/nowhere"
    (folder / "open_clip_config.json").write_text(json.dumps(written))
    config = ModelConfig(tower=f"local-dir:{folder}")
    again = fetched(tmp_path / "again", config)
    assert torch.equal(embed_prompts(again, PROMPTS), embed_prompts(first, PROMPTS))
    before = weights_id(config, 0)
    (folder / "tokenizer_config.json").write_text("{}")
    assert weights_id(config, 0) != before, "its tokenizer counts"


def test_folders_that_hold_no_model(whole: Path, tmp_path: Path) -> None:
    empty, several = pushed(tmp_path / "empty", whole, ""), pushed(tmp_path / "several", whole, "a.pt")
    shutil.copy(several / "a.pt", several / "b.pt")
    for tower, weights, message in (
        (str(empty), "openai", "should hold a checkpoint, as open_clip_model.safetensors, but holds none; set"),
        (str(several), "openai", r"holds several \(a\.pt, b\.pt\); set model\.weights to a file"),
        (f"local-dir:{tmp_path}/absent", "openai", "absent/open_clip_config.json cannot be read"),
        (model(tmp_path, VIT).tower, f"local-dir:{tmp_path}/absent", "should hold a checkpoint"),
    ):
        with pytest.raises(InputError, match=message):
            towers.check(ModelConfig(tower=tower, weights=weights))


# Text from elsewhere


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


HUB_TOKENS = {**SIGLIP, "text_cfg": {**TEXT, "hf_tokenizer_name": "test/words"}}
HUB_TOWER = {**VIT, "text_cfg": {"hf_tokenizer_name": "test/words", "hf_model_name": "test/tower"}}


@pytest.mark.parametrize("config", [HUB_TOKENS, HUB_TOWER], ids=["tokenizer", "tower"])
def test_what_the_hub_has_for_text_alone_is_not_asked_for_where_minilm_embeds(
    config: dict[str, Any], offline: None, tmp_path: Path
) -> None:
    drawn = model(tmp_path, config)
    with pytest.raises(InputError, match="cannot fetch the tokenizer of Hugging Face repository test/words"):
        fetch(drawn, 0, tmp_path)
    (tmp_path / "out").mkdir()
    fetch(drawn, 0, tmp_path / "out", own_text=False)
    size = towers.preprocess(drawn).size
    assert image_tower(tmp_path / "out")(torch.zeros(2, 3, size, size)).shape == (2, 384)
    assert weights_id(drawn, 0, own_text=False) != weights_id(drawn, 0)


def test_pretrained_weights_of_a_tower_with_text_on_the_hub(
    offline: None, whole: Path, state: State, tmp_path: Path
) -> None:
    """The whole checkpoint is given; of its text tower nothing is built."""
    own_text = {f"text.transformer.x{k}": torch.ones(k + 1) for k in range(3)}
    image = {name: value for name, value in state.items() if name.startswith("visual.")}
    torch.save({"module": image | own_text | {"logit_scale": torch.ones([])}}, tmp_path / "w.pt")
    (tmp_path / "out").mkdir()
    fetch(model(tmp_path, HUB_TOWER, str(tmp_path / "w.pt")), 0, tmp_path / "out", own_text=False)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(image_tower(tmp_path / "out")(x), image_tower(whole)(x))


def test_a_tower_whose_images_minilm_cannot_meet_is_refused_at_once(whole: Path) -> None:
    for weights in ("openai", str(whole / "model.safetensors")):
        with pytest.raises(InputError, match=r"embeds images in 512 dimensions, text\.encoder minilm text in 384; set"):
            towers.check_text(ModelConfig(tower="ViT-B/32", weights=weights))
    towers.check_text(ModelConfig(tower="ViT-B/32", weights="random"))


def test_every_one_of_open_clips_towers_may_be_drawn_for_minilm() -> None:
    """On the meta device, which holds no weights; the benchmark builds all 144."""
    needing = [name for name, path in towers.built_in().items() if "hf_tokenizer_name" in path.read_text()]
    assert len(needing) == 49
    for name in (
        "ViT-B-16-SigLIP",
        "ViT-B-32-SigLIP2-256",
        "nllb-clip-base",
        "ViT-L-14-CLIPA",
        "coca_roberta-ViT-B-32",
    ):
        assert name in needing
        config = towers.config_of(ModelConfig(tower=name, weights="random"), own_text=False)
        size = towers.preprocess(ModelConfig(tower=name, weights="random")).size
        with torch.device("meta"):
            assert openclip.build_image_tower(config)(torch.zeros(1, 3, size, size)).shape == (1, 384)
