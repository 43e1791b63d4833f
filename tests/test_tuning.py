"""Stage 1 that tunes little: zero at the start, the published counts, and LIFT's step beside one written out here."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from lfm.backbones.assembly import Assembly
from lfm.backbones.blocks import transformer_blocks
from lfm.backbones.model import LFM, conv4
from lfm.backbones.openclip import build_image_tower
from lfm.backbones.towers import Preprocess
from lfm.backbones.tuned_parts import AdaptFormer, merge
from lfm.backbones.tuning import Tuning, size_of
from lfm.config.presets import load
from lfm.data.images import Images
from lfm.errors import InputError
from lfm.jobs.prepare import check
from lfm.method.draws import generator
from lfm.training.loop import Stage
from tests.small_stage import CLASSES, COUNTS, config, images, text

SMALL: dict[str, object] = {"image_size": 12, "patch_size": 6, "layers": 2, "width": 32, "head_width": 16}
TOWERS: dict[str, dict[str, object]] = {
    "open_clip": SMALL,
    "open_clip with LayerScale": SMALL | {"ls_init_value": 0.1},
    "open_clip of other blocks": SMALL | {"block_type": "custom", "qk_norm": True},
    "timm": {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "timm_proj": "linear", "image_size": 224},
    "timm, SigLIP's pooling": {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "avg", "timm_proj": "none",
                               "image_size": 224},
    "EVA": {"timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "timm_proj": "linear",
            "image_size": 224},
}  # fmt: skip
ZERO_AT_START = ["adaptformer", "lora", "bias", "norm", "mask", "last:1"]


def tower(name: str = "open_clip", dim: int = 32) -> nn.Module:
    torch.manual_seed(0)
    vision = TOWERS[name]
    if "none" in vision.values():
        dim = 192
    return build_image_tower({"embed_dim": dim, "vision_cfg": vision})


def tuning(kind: str, size: int = 0, classes: int = 100) -> Tuning:
    return Tuning(kind, size, "kaiming-uniform", classes, seed=0)


def pictures(count: int = 5, side: int = 12) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", ZERO_AT_START)
@pytest.mark.parametrize("name", TOWERS)
def test_the_first_answers_are_those_of_the_untouched_tower(name: str, kind: str) -> None:
    net, x = tower(name), pictures(2, 224 if "timm_model_name" in TOWERS[name] else 12)
    before = net(x)
    own = {key for key, _ in net.named_parameters()}
    tuned = tuning(kind, 2 if kind in ("adaptformer", "lora") else 0).add_to(net)
    assert torch.equal(net(x), before)
    assert tuned and (kind in ("bias", "norm", "last:1")) == (set(tuned) <= own)
    few = sum(parameter.numel() for key, parameter in net.named_parameters() if key in tuned)
    assert few < 0.8 * sum(parameter.numel() for parameter in net.parameters())
    with torch.no_grad():
        for number, (key, parameter) in enumerate(net.named_parameters()):
            if key in tuned:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(number)))
    moved = net(x)
    assert not torch.allclose(moved, before), "and what is tuned has its effect"
    merge(net)
    assert torch.equal(net(x), moved), "merged, to the last bit"


@pytest.mark.parametrize("name", ["open_clip", "timm"])
def test_prompts_are_seen_by_attention_and_leave_no_token_behind(name: str) -> None:
    net, x = tower(name), pictures(2, 224 if name == "timm" else 12)
    before = net(x)
    tuned = tuning("vpt", 3).add_to(net)
    assert len(tuned) == len(list(transformer_blocks(net))) and all(key.endswith("prompt") for key in tuned)
    assert net(x).shape == before.shape and not torch.equal(net(x), before)
    plain = net(x)
    with torch.autocast("cpu", torch.bfloat16):  # open_clip's blocks then take tokens first
        assert torch.allclose(net(x).float(), plain, atol=0.05)


def test_a_tower_without_such_parts_is_refused_with_what_it_has() -> None:
    with pytest.raises(InputError, match=r"tune=adaptformer is for towers of transformer blocks.*full, bias, norm or"):
        tuning("adaptformer").add_to(conv4(1, 32, 0))
    with pytest.raises(InputError, match=r"last:9: this tower has 2 blocks"):
        tuning("last:9").add_to(tower())
    with pytest.raises(InputError, match="rotary positions"):
        tuning("vpt").add_to(tower("EVA"))
    with pytest.raises(InputError, match="head=classes is for towers that end in a linear projection"):
        Assembly(tuning("full"), "classes").model(conv4(1, 32, 0), text())
    for value, error in (("half", "none of full, adaptformer"), ("last:0", "none of full")):
        with pytest.raises(InputError, match=error):
            load("custom", {"stage1.tune": value})
    for field in ({"stage1.tune_size": 4}, {"stage1.momentum": 0.5}):
        with pytest.raises(InputError, match="has no effect with"):
            load("custom", field)


@pytest.mark.parametrize(
    ("preset", "values", "error"),
    [
        ("lift-cifar100-lt", {}, ""),
        ("lift-cifar100-lt", {"model.tower": "RN50"}, "head=classes is for towers that end in a linear"),
        ("cifar100-lt", {"model.tower": "RN50", "stage1.tune": "lora"}, "lora is for towers of transformer blocks"),
        ("fashion-mnist-lt", {"stage1.tune": "adaptformer"}, "adaptformer is for towers of transformer blocks"),
        ("cifar100-lt", {"stage1.tune": "last:40"}, "this tower has 12 blocks"),
        ("cifar100-lt", {"model.tower": "RN50", "stage1.wise": "auto"}, "wise: this tower has batch norms"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_weights_are_fetched(
    preset: str, values: dict[str, object], error: str
) -> None:
    if not error:
        return check(load(preset, values))
    with pytest.raises(InputError, match=error):
        check(load(preset, values))
    return None


@pytest.mark.parametrize(
    ("classes", "width", "weights"),
    [(100, 4, 101_436), (365, 8, 175_212), (1_000, 32, 617_868), (8_142, 256, 4_749_324)],
)
def test_adaptformer_has_the_published_number_of_weights(classes: int, width: int, weights: int) -> None:
    """Shi et al. 2024, for ViT-B/16: 12 blocks of width 768."""
    blocks = {"layers": 12, "width": 768, "head_width": 64, "image_size": 32, "patch_size": 16}
    with torch.device("meta"):
        net = build_image_tower({"embed_dim": 512, "vision_cfg": blocks})
    found = list(transformer_blocks(net))
    made = AdaptFormer(768, width, generator(0), "kaiming-normal")
    assert sum(parameter.numel() for parameter in made.parameters()) * len(found) == weights
    assert size_of(tuning("adaptformer", classes=classes), found) == width


def test_what_is_kept_of_a_vit_b_16_of_100_classes_takes_under_5_mb() -> None:
    blocks = {"layers": 12, "width": 768, "head_width": 64, "image_size": 224, "patch_size": 16}
    net = build_image_tower({"embed_dim": 512, "vision_cfg": blocks})
    text_CD = F.normalize(torch.randn(100, 512, generator=generator(1)), dim=1)
    model = Assembly(tuning("adaptformer"), "classes").model(net, text_CD)
    assert sum(parameter.numel() for parameter in model.train_stage(1)) == 101_436 + 100 * 768
    assert sum(value.nbytes for value in model.changing().values()) < 5e6


def test_a_tower_whose_projection_was_fitted_is_kept_whole() -> None:
    fitted = {"model.tower": "tf_efficientnet_lite0", "model.weights": "imagenet-lite0", "text.encoder": "minilm"}
    plain, own = load("custom", {"stage1.tune": "norm"}), load("custom", {"stage1.tune": "norm", **fitted})
    assert Assembly.of(plain, 9).on_base and not Assembly.of(own, 9).on_base


def test_little_trains_and_is_kept_and_a_stage_resumes_to_the_last_bit(tmp_path: Path) -> None:
    def trained(folder: Path) -> LFM:
        settings = config(
            stage1__tune="adaptformer", stage1__optimizer="sgd", stage1__weight_decay=5e-4, stage1__lr=0.1,
            train__crop="random", train__precision="bf16", train__checkpoint_steps=4,
        )  # fmt: skip
        model = Assembly(tuning("adaptformer", classes=CLASSES), "classes").model(tower(), text())
        Stage(1, settings, model, rgb(images()), rgb(images(1)), folder, lambda v, _: None, 0.5).run()
        return model

    whole, untouched = trained(tmp_path / "whole"), tower()
    state = load_file(max((tmp_path / "whole").glob("step-*")) / "state.safetensors")
    kept = {key.removeprefix("model.") for key in state if key.startswith("model.")}
    added = {f"image.{key}" for key in whole.tuned or ()}
    assert kept == {*added, "text_CD", "projection_FD", "rows_CF"}
    assert not any(".inner." in key for key in added)
    for key, value in whole.image.named_parameters():
        if f"image.{key}" not in added:
            assert torch.equal(value, untouched.get_parameter(key.replace("mlp.inner", "mlp"))), key
    cut = max((tmp_path / "whole").glob("step-*"))
    (tmp_path / "cut").mkdir()
    cut.rename(tmp_path / "cut" / cut.name)
    again = trained(tmp_path / "cut")
    assert all(torch.equal(value, again.changing()[key]) for key, value in whole.changing().items())


def rgb(data: Images) -> Images:
    to = Preprocess(12, (0.5,) * 3, (0.3,) * 3, "bicubic", "squash")
    return Images(lambda i: data.fetch(i).expand(-1, 3, -1, -1), (3, 12, 12), data.label_N, to, held=True)


def forward(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """CLIP's image tower with AdaptFormer next to each MLP, its class token before the projection: as LIFT says it."""

    def norm(name: str, z: Tensor) -> Tensor:
        return F.layer_norm(z, z.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    z = F.conv2d(x, w["conv1.weight"], stride=6).flatten(2).transpose(1, 2)
    z = torch.cat([w["class_embedding"].expand(len(x), 1, -1), z], dim=1) + w["positional_embedding"]
    z = norm("ln_pre", z)
    for k in range(2):
        b = f"transformer.resblocks.{k}"
        h = norm(f"{b}.ln_1", z)
        q, key, v = F.linear(h, w[f"{b}.attn.in_proj_weight"], w[f"{b}.attn.in_proj_bias"]).chunk(3, dim=-1)
        q, key, v = (t.unflatten(2, (2, 16)).transpose(1, 2) for t in (q, key, v))
        a = ((q @ key.transpose(-1, -2)) / math.sqrt(16)).softmax(-1) @ v
        z = z + F.linear(a.transpose(1, 2).flatten(2), w[f"{b}.attn.out_proj.weight"], w[f"{b}.attn.out_proj.bias"])
        h = norm(f"{b}.ln_2", z)
        mlp = F.gelu(F.linear(h, w[f"{b}.mlp.inner.c_fc.weight"], w[f"{b}.mlp.inner.c_fc.bias"]))
        mlp = F.linear(mlp, w[f"{b}.mlp.inner.c_proj.weight"], w[f"{b}.mlp.inner.c_proj.bias"])
        down = F.linear(norm(f"{b}.mlp.added.norm", h), w[f"{b}.mlp.added.down.weight"], w[f"{b}.mlp.added.down.bias"])
        up = F.linear(down.relu(), w[f"{b}.mlp.added.up.weight"], w[f"{b}.mlp.added.up.bias"])
        z = z + mlp + w[f"{b}.mlp.added.scale"] * up
    return norm("ln_post", z)[:, 0]


def test_two_steps_are_those_of_lift_written_out(tmp_path: Path) -> None:
    """Cosine head of scale 25, log of the class prior, SGD of momentum 0.9 with decay 5e-4 on everything."""
    settings = config(
        stage1__tune="adaptformer", stage1__optimizer="sgd", stage1__weight_decay=5e-4, stage1__lr=0.01,
        stage1__epochs=2, stage1__batch_size=200, stage1__cosine="epoch", stage1__warmup=0, loss__adjust="prior",
        loss__temperature=0.04, mixup__name="none", train__precision="fp32", train__flip=False,
    )  # fmt: skip
    net = tower()
    projection_FD = net.get_parameter("proj").detach().clone()
    model = Assembly(tuning("adaptformer", classes=CLASSES), "classes").model(net, text())
    start = {key: value.detach().clone() for key, value in model.image.state_dict().items()}
    rows_CF = F.normalize(F.normalize(text(), dim=1) @ projection_FD.T, dim=1)
    assert torch.allclose(model.unit_CD, rows_CF, atol=1e-6)
    data = rgb(images())
    Stage(1, settings, model, data, rgb(images(1)), tmp_path, lambda v, _: None, 0.0).run()

    theirs = {key: start[key].requires_grad_() for key in model.tuned or ()} | {"rows_CF": rows_CF.requires_grad_()}
    momentum = {key: torch.zeros_like(value) for key, value in theirs.items()}
    pixels, label_N = data.fetch(torch.arange(len(data.label_N))).float(), data.label_N
    x, log_prior_C = (pixels / 255 - 0.5) / 0.3, torch.log(torch.tensor(COUNTS) / sum(COUNTS))
    for epoch in range(2):
        feature_BF = forward(start | theirs, x)
        logits = 25 * F.normalize(feature_BF, dim=1) @ F.normalize(theirs["rows_CF"], dim=1).T
        gradients = torch.autograd.grad(F.cross_entropy(logits + log_prior_C, label_N), list(theirs.values()))
        for (key, value), gradient in zip(theirs.items(), gradients, strict=True):
            momentum[key] = 0.9 * momentum[key] + gradient + 5e-4 * value.detach()
            value.data -= 0.01 * (1 + math.cos(math.pi * epoch / 2)) / 2 * momentum[key]
    own = dict(model.image.named_parameters()) | {"rows_CF": model.get_parameter("rows_CF")}
    for key, value in theirs.items():
        assert torch.allclose(own[key], value, atol=2e-5), key
    start_CF = F.normalize(F.normalize(text(), dim=1) @ projection_FD.T, dim=1)
    assert (own["rows_CF"] - start_CF).abs().max() > 1e-3, "far beyond the tolerance"
