"""Backbones against open_clip's own create_model (over 300 lines: all on the same models, one a family)."""

import copy
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lfm.backbones import openclip, towers
from lfm.backbones.openclip import embed_prompts, image_tower, load
from lfm.backbones.text_encoders import minilm_folder
from lfm.backbones.towers import Preprocess, preprocess
from lfm.backbones.weights import fetch, weights_id
from lfm.config.schema import ModelConfig
from lfm.errors import InputError
from tests.s3 import S3

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
VIT: dict[str, Any] = {"embed_dim": 64, "vision_cfg": VISION, "text_cfg": TEXT}
RESNET = {**VIT, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}}
SQUASH = {"mean": [0.5, 0.5, 0.5], "std": 0.5, "interpolation": "bilinear", "resize_mode": "squash"}
HUB_TEXT = {"hf_tokenizer_name": str(minilm_folder()), "tokenizer_kwargs": {"clean": "canonicalize"}}
SIGLIP = {
    **VIT,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": VISION | {"pool_type": "avg", "no_ln_pre": True},
    "text_cfg": TEXT
    | HUB_TEXT
    | {"vocab_size": 30522, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    | {"norm_kwargs": {"eps": 1e-6}},
}
TIMM = {**VIT, "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "", "image_size": 160}}
COCA = {
    "embed_dim": 64,
    "custom_text": True,
    "vision_cfg": VISION | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
    "multimodal_cfg": TEXT | {"attn_pooler_heads": 2},
}
FAMILIES = {"vit": VIT, "quick": {**VIT, "quick_gelu": True}, "resnet": RESNET, "timm": TIMM, "coca": COCA}
PROMPTS = ["a photo of a Bag", "a photo of an ankle boot.", "a very, VERY old red bus", "x"]
TINY = ModelConfig(tower="tiny", weights="random")


def model(folder: Path, config: dict[str, Any], weights: str = "random") -> ModelConfig:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tower.json"
    path.write_text(json.dumps(config))
    return ModelConfig(tower=str(path), weights=weights)


def fetched(folder: Path, config: ModelConfig, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    fetch(config, seed, folder)
    return folder


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind of open_clip model, random weights."""
    from transformers import BertConfig

    root = tmp_path_factory.mktemp("backbones")
    bert = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    bert.save_pretrained(root / "bert")
    hub = {**VIT, "text_cfg": HUB_TEXT | {"context_length": 16, "hf_model_name": str(root / "bert")}}
    configs = {**FAMILIES, "siglip": {"model_cfg": SIGLIP, "preprocess_cfg": SQUASH}, "hub": hub}
    folders = {key: fetched(root / key, model(root / "configs" / key, config)) for key, config in configs.items()}
    shutil.rmtree(root / "bert")  # only what the folders hold may be needed
    return folders


@pytest.fixture(scope="session")
def vit(families: dict[str, Path]) -> Path:
    return families["vit"]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """`tiny` as one of open_clip's models with the tags openai (QuickGELU, squashed) and laion; an empty hub cache."""
    for suffix in ("", "-quickgelu"):
        (tmp_path / f"tiny{suffix}.json").write_text(json.dumps(VIT | ({"quick_gelu": True} if suffix else {})))
    known = towers.built_in() | {path.stem: path for path in tmp_path.glob("tiny*.json")}
    monkeypatch.setattr(towers, "built_in", lambda: known)
    tags = towers.open_clip_tags()
    plain = {"url": "", "mean": (0.4,) * 3, "std": (0.2,) * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    openai = plain | {"hf_hub": "test/tiny.openai/", "quick_gelu": True}
    named = plain | {"hf_hub": "test/tiny.laion/tiny.bin", "mean": (0.3,) * 3}
    monkeypatch.setitem(tags._PRETRAINED, "tiny", {"openai": openai, "laion_2b": named})
    monkeypatch.setitem(tags._PRETRAINED, "tiny-quickgelu", {"openai": openai})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def oracle(folder: Path, place: Path) -> tuple[Any, Callable[[list[str]], Tensor]]:
    """open_clip's own reading of the same weights: model and tokenizer."""
    import open_clip

    place.mkdir()
    config = json.loads((folder / "config.json").read_text())
    if (folder / "text").is_dir():
        config["text_cfg"]["hf_model_name"] = str(folder / "text")
    whole = {"model_cfg": config, "preprocess_cfg": json.loads((folder / "preprocess.json").read_text())}
    (place / "open_clip_config.json").write_text(json.dumps(whole))
    shutil.copy(folder / "model.safetensors", place / "open_clip_model.safetensors")
    for path in (folder / "tokenizer").glob("*"):
        shutil.copy(path, place)
    return open_clip.create_model(f"local-dir:{place}").eval(), open_clip.get_tokenizer(f"local-dir:{place}")


def images(folder: Path) -> Tensor:
    size = json.loads((folder / "info.json").read_text())["image_size"]
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", [*FAMILIES, "siglip", "hub"])
def test_both_towers_give_what_open_clip_gives(
    families: dict[str, Path], family: str, tmp_path: Path, no_network: None
) -> None:
    folder = families[family]
    expected, tokenizer = oracle(folder, tmp_path / "oracle")
    x = images(folder)
    with torch.no_grad():
        image_BD, text_ND = expected.encode_image(x), expected.encode_text(tokenizer(PROMPTS), normalize=True)
        tower = image_tower(folder)
        assert torch.equal(tower(x), expected.visual(x)[0] if family == "coca" else image_BD)
        if family != "coca":  # whose encode_image normalises
            assert torch.equal(load(folder).encode_image(x), image_BD)  # type: ignore[operator]
    got_ND = embed_prompts(folder, PROMPTS, batch=len(PROMPTS))
    assert tower(x).shape == (3, 64) and got_ND.shape == (4, 64) and got_ND.dtype == torch.float32
    assert torch.equal(got_ND, text_ND)
    assert torch.allclose(got_ND.norm(dim=1), torch.ones(4), atol=1e-6)
    assert torch.allclose(embed_prompts(folder, PROMPTS, batch=3), got_ND, atol=1e-6)
    assert not got_ND.is_inference() and not got_ND.requires_grad
    assert not tower.training and not load(folder).training


def test_the_folder_says_what_it_holds(families: dict[str, Path]) -> None:
    from lfm.storage.artifact import sha256_file

    info = json.loads((families["siglip"] / "info.json").read_text())
    state = load_file(families["siglip"] / "model.safetensors")
    assert info["sha256"] == sha256_file(families["siglip"] / "model.safetensors")
    assert (info["embed_dim"], info["image_size"], info["weights"]) == (64, 32, "random")
    assert info["parameters"]["image"] == sum(v.numel() for k, v in state.items() if k.startswith("visual."))
    assert info["parameters"]["all"] == sum(v.numel() for v in state.values())
    assert "logit_scale" in state and all(v.dtype == torch.float32 for v in state.values())
    ready = json.loads((families["siglip"] / "preprocess.json").read_text())
    assert ready == {**SQUASH, "size": 32, "std": [0.5] * 3}


def test_the_image_tower_is_rebuilt_from_the_configuration_alone(families: dict[str, Path]) -> None:
    for folder in families.values():
        config = json.loads((folder / "config.json").read_text())
        before = copy.deepcopy(config)
        bare, filled = openclip.build_image_tower(config), image_tower(folder)
        assert config == before
        bare.load_state_dict(filled.state_dict())
        assert torch.equal(bare(images(folder)), filled(images(folder)))


@pytest.mark.parametrize("family", ["vit", "quick", "coca", "siglip"])
def test_a_frozen_tower_in_bf16_copies_no_weights_and_gives_what_open_clip_gives(
    families: dict[str, Path], family: str, tmp_path: Path, no_network: None
) -> None:
    """No batched product: that of the attention's weights with a transposed view copies them for each token."""
    folder = families[family]
    expected, _ = oracle(folder, tmp_path / "oracle")
    tower, x, called = image_tower(folder).requires_grad_(False), images(folder), set()

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.add(str(function))
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = expected.visual(x)
        with Calls():  # type: ignore[no-untyped-call]
            found = tower(x)
    assert torch.equal(found, plain[0] if family == "coca" else plain)
    assert "aten.addmm.default" in called
    assert family == "coca" or "aten.bmm.default" not in called  # its pooler is small, and open_clip's own


def test_the_seed_draws_the_weights_and_the_global_state_stays(vit: Path, tmp_path: Path) -> None:
    config = model(tmp_path, VIT)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    again, other = fetched(tmp_path / "again", config, 0), fetched(tmp_path / "other", config, 1)
    load(again)
    image_tower(again)
    assert torch.equal(torch.rand(3), expected), "the global random state moved"
    same, first, second = (load_file(folder / "model.safetensors") for folder in (again, vit, other))
    assert all(torch.equal(same[key], first[key]) for key in first)
    assert not torch.equal(first["visual.conv1.weight"], second["visual.conv1.weight"])


# Checkpoints


def write(state: dict[str, Tensor], path: Path, wrap: str = "") -> str:
    whole: Any = {f"module.{k}": v for k, v in state.items()} if "module" in wrap else state
    whole = {"epoch": 3, "name": "x", "state_dict": whole} if "state_dict" in wrap else whole
    if path.suffix == ".safetensors":
        save_file(whole, path)
    else:
        torch.save(whole, path)
    return str(path)


@pytest.mark.parametrize(
    ("file", "wrap"),
    [
        ("w.safetensors", ""),
        ("w.safetensors", "module"),
        ("w.pt", ""),
        ("w.pth", "module"),
        ("w.bin", "state_dict"),
        ("w.pt", "state_dict module"),
    ],
)
def test_every_file_format_gives_the_same_weights(vit: Path, tmp_path: Path, file: str, wrap: str) -> None:
    state = load_file(vit / "model.safetensors")
    config = model(tmp_path, VIT, write(state, tmp_path / file, wrap))
    got = load_file(fetched(tmp_path / "out", config, seed=5) / "model.safetensors")
    assert got.keys() == state.keys() and all(torch.equal(got[key], state[key]) for key in state)
    assert weights_id(config, 0)["weights"].keys() == {"sha256"}


def test_half_precision_and_openai_extras_are_read(vit: Path, tmp_path: Path) -> None:
    state = load_file(vit / "model.safetensors")
    half = {key: value.half() for key, value in state.items()}
    extras = {key: torch.tensor(1) for key in ("input_resolution", "context_length", "vocab_size")}
    config = model(tmp_path, VIT, write(half | extras, tmp_path / "w.pt"))
    got = load_file(fetched(tmp_path / "out", config) / "model.safetensors")
    assert all(torch.equal(got[key], half[key].float()) for key in state)


def test_a_clip_file_fills_a_custom_text_model_and_a_larger_image(vit: Path, tmp_path: Path) -> None:
    from open_clip.factory import load_checkpoint

    weights = write(load_file(vit / "model.safetensors"), tmp_path / "w.pt")
    wide = {**VIT, "custom_text": True, "vision_cfg": VISION | {"image_size": 48}}
    wide["text_cfg"] = TEXT | {"context_length": 20}
    folder = fetched(tmp_path / "out", model(tmp_path, wide, weights))
    expected = openclip.build(wide, folder)
    load_checkpoint(expected, weights)
    got = load(folder).state_dict()
    assert all(torch.equal(got[key], value) for key, value in expected.state_dict().items())
    assert image_tower(folder)(images(folder)).shape == (3, 64)


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def test_a_pickle_is_refused_and_not_run(vit: Path, tmp_path: Path) -> None:
    state = load_file(vit / "model.safetensors")
    torch.save({"state_dict": state, "extra": Evil(tmp_path / "ran")}, tmp_path / "evil.pt")
    config = model(tmp_path, VIT, str(tmp_path / "evil.pt"))
    with pytest.raises(InputError, match=r"evil\.pt is damaged or holds pickled objects.*save its weights alone"):
        fetched(tmp_path / "out", config)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert (tmp_path / "ran").exists(), "the test's own file would have run"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Converting a tensor", "ignore:.*torch.jit")
def test_torchscript_is_refused_with_a_command_that_converts_it(
    families: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = image_tower(families["resnet"])
    torch.jit.trace(net, images(families["resnet"])).save(str(tmp_path / "RN50.pt"))
    config = model(tmp_path, RESNET, str(tmp_path / "RN50.pt"))
    with pytest.raises(InputError, match=r"RN50\.pt is a TorchScript program, as OpenAI's") as error:
        fetched(tmp_path / "out", config)
    command = str(error.value).partition('python -c "')[2].rpartition('"')[0]
    done = subprocess.run([sys.executable, "-c", command], check=False)
    assert done.returncode == 0
    got = load_file(tmp_path / "RN50.safetensors")
    assert all(torch.equal(got[key], value) for key, value in net.state_dict().items())


def test_files_that_hold_no_weights_or_another_models(vit: Path, tmp_path: Path) -> None:
    state = load_file(vit / "model.safetensors")

    def refused(match: str, weights: str, config: dict[str, Any] = VIT) -> None:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        with pytest.raises(InputError, match=match):
            fetched(tmp_path / "out", model(tmp_path, config, weights))

    for file in ("w.pt", "w.safetensors"):
        (tmp_path / file).write_bytes(b"hello")
        refused(rf"{file} is damaged", str(tmp_path / file))
    torch.save({"a": 1}, tmp_path / "w.pt")
    refused(r"w\.pt is no state dict", str(tmp_path / "w.pt"))
    torch.save([torch.ones(1)], tmp_path / "w.pt")
    refused(r"w\.pt is no state dict", str(tmp_path / "w.pt"))
    less = {key: value for key, value in state.items() if not key.startswith("ln_final")}
    weights = write(less | {"extra": torch.ones(1)}, tmp_path / "w.pt")
    both = r"another model's weights: 2 missing \(ln_final\.bias, ln_final\.weight\) and 1 unknown \(extra\); set"
    refused(both, weights)
    whole = write(state, tmp_path / "w.pt")
    refused(r"missing \(.*unknown \(", whole, RESNET)
    patches = r"visual\.conv1\.weight is \(64, 3, 8, 8\) where the model has \(64, 3, 4, 4\); set model\.tower"
    refused(patches, whole, {**VIT, "vision_cfg": VISION | {"patch_size": 4}})
    refused(r"positional_embedding is \(16, 32\) where", whole, {**VIT, "text_cfg": TEXT | {"width": 64}})


def test_checkpoint_and_configuration_in_a_bucket(
    vit: Path, s3: S3, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.use(monkeypatch)
    s3.client().create_bucket(Bucket="towers")
    s3.client().upload_file(str(vit / "model.safetensors"), "towers", "a/w.safetensors")
    s3.client().put_object(Bucket="towers", Key="a/tower.json", Body=json.dumps(VIT).encode())
    config = ModelConfig(tower="s3://towers/a/tower.json", weights="s3://towers/a/w.safetensors")
    local = ModelConfig(tower=model(tmp_path, VIT).tower, weights=str(vit / "model.safetensors"))
    assert weights_id(config, 0)["weights"] == weights_id(local, 0)["weights"]
    got, want = (load_file(folder / "model.safetensors") for folder in (fetched(tmp_path / "out", config), vit))
    assert all(torch.equal(got[key], want[key]) for key in want)
    with pytest.raises(InputError, match=r"s3://towers/a/none\.pt is not there"):
        towers.check(ModelConfig(tower="ViT-B-32", weights="s3://towers/a/none.pt"))


# Names and tags


@pytest.mark.parametrize(
    ("tower", "expected"),
    [
        ("ViT-B/32", "ViT-B-32"),
        ("ViT-B/16", "ViT-B-16"),
        ("RN50", "RN50"),
        ("vit-b-32", "ViT-B-32"),
        ("ViT-L/14@336px", "ViT-L-14-336"),
        ("ViT-B-16-SigLIP", "ViT-B-16-SigLIP"),
        ("/x/y.json", "/x/y.json"),
    ],
)
def test_names(tower: str, expected: str) -> None:
    assert towers.name(ModelConfig(tower=tower)) == expected


def test_all_of_open_clips_names_are_known() -> None:
    import open_clip

    assert sorted(towers.built_in()) == sorted([*open_clip.list_models(), "tf_efficientnet_lite0"])
    for tower in open_clip.list_models():
        assert towers.name(ModelConfig(tower=tower)) == tower


def test_unknown_towers_and_weights_are_refused_at_once(tmp_path: Path) -> None:
    def refused(match: str, **values: str) -> None:
        with pytest.raises(InputError, match=match):
            towers.check(ModelConfig(**values))

    refused(r"unknown tower 'ViT-B-33'; did you mean ViT-B-32\?", tower="ViT-B/33")
    refused(r"unknown tower 'conv5'; did you mean conv4\?", tower="conv5")
    refused(r"unknown weights of ViT-B-32: 'opnai'; did you mean openai\?; known: openai, laion", weights="opnai")
    refused(r"known: openai, yfcc15m, cc12m, random, or the path", tower="RN50", weights="laion2b_s34b_b79k")
    refused(r"x\.pt is not there; give the path", weights="/nowhere/x.pt")
    refused(r"x\.ckpt ends in none of \.safetensors, \.pt", weights="/nowhere/x.ckpt")
    refused(r"conv4 is always trained from scratch; model\.weights=w\.pt", tower="conv4", weights="w.pt")
    refused(r"none\.json cannot be read", tower=str(tmp_path / "none.json"))
    for content, match in [("{", "is not JSON"), ("[]", "is no model conf"), ('{"embed_dim": 3}', "needs embed_dim")]:
        (tmp_path / "own.json").write_text(content)
        refused(match, tower=str(tmp_path / "own.json"), weights="random")
    for extra, match in [({"resize_mode": "longest"}, "'longest', which is not supp"), ({"interpolation": "x"}, "'x'")]:
        own = model(tmp_path, {"model_cfg": VIT, "preprocess_cfg": extra})
        refused(match, tower=own.tower, weights="random")
    oblong = model(tmp_path, {**VIT, "vision_cfg": VISION | {"image_size": [32, 48]}})
    refused(r"\[32, 48\] pixels; only square", tower=oblong.tower, weights="random")
    towers.check(ModelConfig(tower="conv4"))
    towers.check(ModelConfig(tower="ViT-B/32", weights="DataComp-XL-s13B-b90K"))
    assert not towers.uses_open_clip(ModelConfig(tower="conv4")) and towers.uses_open_clip(ModelConfig())


def test_a_configuration_that_open_clip_cannot_build_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"open_clip cannot build it: .*'depth'"):
        fetched(tmp_path / "out", model(tmp_path, {**VIT, "vision_cfg": VISION | {"depth": 3}}))


@pytest.mark.slow
def test_checking_imports_neither_open_clip_nor_transformers() -> None:
    code = (
        "import sys; from lfm.backbones import towers, weights; "
        "from lfm.config.schema import ModelConfig as M; towers.check(M()); "
        "weights.weights_id(M(), 0); assert not {'open_clip', 'transformers', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_preprocessing_of_every_tag_is_open_clips() -> None:
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    pairs = open_clip.list_pretrained()
    assert len(pairs) > 100
    for tower, tag in pairs:
        size = open_clip.get_model_config(tower)["vision_cfg"]["image_size"]
        cfg = merge_preprocess_dict(asdict(PreprocessCfg()), open_clip.get_pretrained_cfg(tower, tag)) | {"size": size}
        assert preprocess(ModelConfig(tower=tower, weights=tag)) == _read(
            image_transform_v2(PreprocessCfg(**cfg), False)
        )


def _read(transform: Any) -> Preprocess:
    """What open_clip's transform does, read off its parts."""
    from torchvision import transforms

    parts = {type(part): part for part in transform.transforms}
    resize, normalise = parts[transforms.Resize], parts[transforms.Normalize]
    size = parts[transforms.CenterCrop].size if transforms.CenterCrop in parts else resize.size
    assert size[0] == size[1] and resize.size in (size[0], tuple(size))
    mode = "shortest" if isinstance(resize.size, int) else "squash"
    return Preprocess(size[0], tuple(normalise.mean), tuple(normalise.std), resize.interpolation.value, mode)


@pytest.mark.slow
def test_preprocessing_is_that_of_create_model_and_transforms(monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *args, **kwargs: None)
    for tower, tag in [("MobileCLIP2-S0", "dfndr2b"), ("ViT-B-32-256", "datacomp_s34b_b86k")]:
        _, _, transform = open_clip.create_model_and_transforms(tower, tag)
        assert preprocess(ModelConfig(tower=tower, weights=tag)) == _read(transform)


def test_a_file_is_prepared_as_the_towers_tags_are_where_they_agree(tiny: Path) -> None:
    siglip = preprocess(ModelConfig(tower="ViT-B-16-SigLIP", weights="random"))
    assert siglip == Preprocess(224, (0.5,) * 3, (0.5,) * 3, "bicubic", "squash")
    clip = preprocess(ModelConfig(tower="ViT-B/32", weights="/x/w.pt"))
    assert clip == towers.DEFAULT
    mixed = preprocess(TINY)
    assert mixed == Preprocess(32, towers.DEFAULT.mean, (0.2,) * 3, "bicubic", "squash")


def into_cache(hub: Path, repo: str, file: str, weights: Path) -> None:
    """Put a file where the Hugging Face hub's client keeps what it has fetched."""
    place = hub / f"models--{repo.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("c0ffee")
    (place / "snapshots" / "c0ffee").mkdir(parents=True)
    shutil.copy(weights, place / "snapshots" / "c0ffee" / file)


def activations(net: nn.Module) -> set[str]:
    return {type(part).__name__ for part in net.modules() if "GELU" in type(part).__name__}


def test_the_tag_decides_the_activation(tiny: Path, vit: Path, tmp_path: Path, no_network: None) -> None:
    into_cache(tiny, "test/tiny.openai", "open_clip_model.safetensors", vit / "model.safetensors")
    torch.save(load_file(vit / "model.safetensors"), tmp_path / "w.bin")
    into_cache(tiny, "test/tiny.laion", "tiny.bin", tmp_path / "w.bin")
    quick = fetched(tmp_path / "quick", ModelConfig(tower="tiny", weights="openai"))
    plain = fetched(tmp_path / "plain", ModelConfig(tower="tiny", weights="laion-2b"))
    assert activations(load(quick)) == activations(image_tower(quick)) == {"QuickGELU"}
    assert activations(load(plain)) == activations(image_tower(plain)) == {"GELU"}
    expected, tokenizer = oracle(quick, tmp_path / "oracle")
    with torch.no_grad():
        want_ND = expected.encode_text(tokenizer(PROMPTS), normalize=True)
    assert torch.equal(embed_prompts(quick, PROMPTS), want_ND)
    assert not torch.allclose(embed_prompts(plain, PROMPTS), want_ND, atol=1e-4)
    assert json.loads((quick / "preprocess.json").read_text())["mean"] == [0.4] * 3


def test_a_file_of_unknown_activation_is_told(tiny: Path, vit: Path, tmp_path: Path, capsys: Any) -> None:
    weights = str(vit / "model.safetensors")
    plain = fetched(tmp_path / "plain", ModelConfig(tower="tiny", weights=weights))
    assert "OpenAI's and MetaCLIP's weights need model.tower=tiny-quickgelu" in capsys.readouterr().out
    quick = fetched(tmp_path / "quick", ModelConfig(tower="tiny-quickgelu", weights=weights))
    assert "quickgelu" not in capsys.readouterr().out
    assert (activations(load(plain)), activations(load(quick))) == ({"GELU"}, {"QuickGELU"})


def test_keys_follow_weights_activation_seed_and_preprocessing(tiny: Path, vit: Path, tmp_path: Path) -> None:
    weights = vit / "model.safetensors"
    shutil.copy(weights, tmp_path / "copy.safetensors")

    def of(tower: str, weights: str, seed: int = 0) -> str:
        return json.dumps(weights_id(ModelConfig(tower=tower, weights=weights), seed), sort_keys=True)

    different = [of("tiny", "random"), of("tiny", "random", 1), of("tiny", "openai"), of("tiny", "laion_2b")]
    different += [of("tiny", str(weights)), of("tiny-quickgelu", str(weights)), of("tiny-quickgelu", "random")]
    assert len(set(different)) == len(different)
    assert of("tiny", str(weights)) == of("tiny", str(tmp_path / "copy.safetensors"), 1)
    assert of("tiny", "openai") == of("tiny", "openai", 1)


# The hub


def test_offline_the_error_names_file_repository_and_settings(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    begun = time.monotonic()
    with pytest.raises(InputError) as error:
        fetch(ModelConfig(tower="ViT-B/32", weights="openai"), 0, tmp_path)
    assert time.monotonic() - begun < 10
    for part in (
        "cannot fetch open_clip_model.safetensors of Hugging Face repository timm/vit_base_patch32_clip_224.openai: "
        "http://127.0.0.1:9 does not answer",
        "`hf download timm/vit_base_patch32_clip_224.openai open_clip_model.safetensors`",
        "set model.tower=ViT-B-32-quickgelu model.weights=/path/to/open_clip_model.safetensors",
    ):
        assert part in str(error.value)
    with pytest.raises(InputError, match=r"cannot fetch tiny\.bin of .*test/tiny\.laion: ") as error:
        fetch(ModelConfig(tower="tiny", weights="laion_2b"), 0, tmp_path)
    assert "set model.tower" not in str(error.value), "no file alone gives this tag's preprocessing"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="HF_HUB_OFFLINE forbids it"):
        fetch(ModelConfig(tower="tiny", weights="openai"), 0, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_hub_that_never_answers_is_given_up(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lfm.backbones.weights.HUB_WAIT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begun = time.monotonic()
        with pytest.raises(InputError, match="does not answer"):
            fetch(ModelConfig(tower="tiny", weights="openai"), 0, tmp_path)
        assert time.monotonic() - begun < 5


def test_a_tokenizer_of_the_hub_is_named_when_it_cannot_be_had(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    own = {**SIGLIP, "text_cfg": TEXT | {"hf_tokenizer_name": "test/words"}}
    with pytest.raises(
        InputError, match=r"cannot fetch the tokenizer of Hugging Face repository test/words: .*--include"
    ):
        fetched(tmp_path / "out", model(tmp_path, own))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server that answers as the hub does, with the files of a folder."""
    served = tmp_path / "served"

    class Hub(BaseHTTPRequestHandler):
        def answer(self, body: bool) -> None:
            path = served / self.path.strip("/").replace("/resolve/main", "")
            content = path.read_bytes() if path.is_file() else b""
            self.send_response(200 if content or self.path == "/" else 404)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", '"5eed"')
            self.send_header("X-Repo-Commit", "c0ffee" * 6 + "beef")
            if not content:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            if body:
                self.wfile.write(content)

        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            self.answer(True)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        yield served
        server.shutdown()


def test_a_tag_is_fetched_from_the_hub(tiny: Path, vit: Path, hub: Path, tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"cannot fetch open_clip_model.safetensors of .* test/tiny\.openai: "):
        fetched(tmp_path / "none", ModelConfig(tower="tiny", weights="openai"))
    assert time.monotonic() - begun < 30
    (hub / "test" / "tiny.openai").mkdir(parents=True)
    shutil.copy(vit / "model.safetensors", hub / "test" / "tiny.openai" / "open_clip_model.safetensors")
    folder = fetched(tmp_path / "out", ModelConfig(tower="tiny", weights="openai"))
    got, want = (load_file(place / "model.safetensors") for place in (folder, vit))
    assert all(torch.equal(got[key], want[key]) for key in want)


# Use


def test_sentences_that_are_too_long_are_told(families: dict[str, Path], capsys: Any) -> None:
    fits, cut = "one two three four five six seven", "word " * 40
    for family in ("vit", "siglip"):
        embed_prompts(families[family], [fits])
        assert "cut" not in capsys.readouterr().out
        embed_prompts(families[family], [fits, cut])
        assert "1 sentences are cut to 16 tokens, the first: 'word word" in capsys.readouterr().out


def test_a_bar_shows_where_encoding_takes_long(vit: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    embed_prompts(vit, PROMPTS, batch=1)
    assert "%" not in capsys.readouterr().out
    monkeypatch.setattr(openclip, "QUIET", 0.0)
    embed_prompts(vit, PROMPTS, batch=1)
    out = capsys.readouterr().out
    assert "text" in out and "4/4 sentences" in out


def test_running_statistics_of_a_resnet_stand_still_in_eval_mode(families: dict[str, Path]) -> None:
    tower = image_tower(families["resnet"])
    x = images(families["resnet"])

    def statistics() -> dict[str, Tensor]:
        return {k: v.clone() for k, v in tower.state_dict().items() if "running" in k or "tracked" in k}

    before = statistics()
    assert len(before) > 20
    first = tower(x)
    assert torch.equal(tower(x), first) and all(torch.equal(v, before[k]) for k, v in statistics().items())
    tower.train()(x)
    assert not all(torch.equal(v, before[k]) for k, v in statistics().items()), "train mode moves them"
    moved = statistics()
    tower.eval()(x)
    assert all(torch.equal(v, moved[k]) for k, v in statistics().items())
