"""Any open_clip model as a folder on disk, read without a network: the paper's F_I and F_T.

`lfm.weights.fetch` fills the folder: weights of both towers, configuration, preprocessing, tokenizer. Letters give
shapes: N sentences, B images, D embedding dimensions.
"""

import json
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from lfm.progress import bar, say
from lfm.storage.artifact import copy_to

WEIGHTS = "model.safetensors"
QUIET = 2.0  # seconds of encoding before a progress bar appears
STAND_IN = {"image_size": 16, "patch_size": 16, "layers": 1, "width": 32, "head_width": 32}

Encoder = Callable[[list[str]], Tensor]
"""Sentences -> embeddings, rows of unit length, (N, D) float32 on the CPU."""


def build(config: dict[str, Any], folder: Path, seed: int = 0) -> Any:
    """open_clip's model, weights drawn from the seed, in eval mode; the global random state stays as it is."""
    import open_clip

    config = deepcopy(config)
    text = config["text_cfg"]
    custom = config.pop("custom_text", False) or text.get("hf_model_name")
    if text.get("hf_model_name"):
        text |= {"hf_model_name": str(folder / "text"), "hf_model_pretrained": False}
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    kind = open_clip.CLIP
    if custom:
        kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return kind(**config).eval()


def build_image_alone(config: dict[str, Any], seed: int = 0) -> Any:
    """What `build` gives without its text tower: `visual` alone, weights drawn from the seed."""
    from open_clip.model import _build_vision_tower

    net = nn.Module()
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net.visual = _build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False))
    return net.eval()


def load(folder: Path) -> nn.Module:
    """open_clip's whole model from what `fetch` left, without a network: float32, on the CPU, in eval mode."""
    net: nn.Module = build(json.loads((folder / "config.json").read_text()), folder)
    load_model(net, str(folder / WEIGHTS))
    return net


def build_image_tower(config: dict[str, Any]) -> nn.Module:
    """The architecture of the image tower alone, weights at random: (B, 3, size, size) -> (B, D), in eval mode.

    Args:
        config: content of a backbone's config.json.
    """
    from open_clip.model import _build_vision_tower
    from open_clip.transformer import ResidualAttentionBlock, Transformer

    vision = config["vision_cfg"] | {"output_tokens": False, "timm_model_pretrained": False}
    with torch.random.fork_rng(devices=[]):
        tower: nn.Module = _build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False))
    for stack in tower.modules():
        if isinstance(stack, Transformer) and all(type(block) is ResidualAttentionBlock for block in stack.resblocks):
            stack.register_forward_pre_hook(_tokens_first)
    return tower.eval()


def _tokens_first(stack: Any, _: Any) -> None:
    """Under autocast let open_clip's transformer run on (tokens, B, width), not (B, tokens, width); equal results.

    The other way round nn.MultiheadAttention gives its first product a transposed view, which PyTorch multiplies with
    one copy of the weights per token where they are frozen: ViT-B/32 in bf16 on a CPU takes ten times as long. Without
    autocast a fused path has no such trouble, but wants the batch first.
    """
    batch_first = not (torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"))
    stack.batch_first = batch_first
    for block in stack.resblocks:
        block.attn.batch_first = batch_first


def image_tower(folder: Path) -> nn.Module:
    """The image tower F_I with its weights: (B, 3, size, size) -> (B, D), float32, on the CPU, in eval mode."""
    tower = build_image_tower(json.loads((folder / "config.json").read_text()))
    with safe_open(folder / WEIGHTS, "pt") as file:
        keys = [key for key in file.keys() if key.startswith("visual.")]  # noqa: SIM118
        tower.load_state_dict({key.removeprefix("visual."): file.get_tensor(key) for key in keys})
    return tower


def hub_tokenizer(text: dict[str, Any], source: str, local_only: bool) -> Any:
    """A tokenizer of the Hugging Face hub, from a repository or a folder, with the settings of text_cfg."""
    from open_clip.tokenizer import HFTokenizer

    return HFTokenizer(
        source,
        context_length=text.get("context_length", 77),
        tokenizer_mode=text.get("tokenizer_mode"),
        local_files_only=local_only,
        **text.get("tokenizer_kwargs", {}),
    )


def _tokenizer(folder: Path, text: dict[str, Any]) -> tuple[Any, Callable[[str], int]]:
    """open_clip's tokenizer from the folder, and how many tokens a sentence would take in full."""
    if text.get("hf_tokenizer_name"):
        hub = hub_tokenizer(text, str(folder / "tokenizer"), local_only=True)
        return hub, lambda prompt: len(hub.tokenizer(prompt, verbose=False).input_ids)
    from open_clip.tokenizer import SimpleTokenizer

    simple = SimpleTokenizer(context_length=text.get("context_length", 77), **text.get("tokenizer_kwargs", {}))
    return simple, lambda prompt: len(simple.encode(prompt)) + 2  # its start and end


def text_encoder(folder: Path) -> Encoder:
    """F_T, ready to use; no network.

    Args:
        folder: filled by `fetch` or `keep_text_half`.
    """
    tokenizer, _ = _tokenizer(folder, json.loads((folder / "config.json").read_text())["text_cfg"])
    net: Any = load(folder)

    def encode(sentences: list[str]) -> Tensor:
        unit_ND: Tensor = net.encode_text(tokenizer(sentences), normalize=True)
        return unit_ND.float()

    return encode


def embed_prompts(folder: Path, prompts: Sequence[str], batch: int = 256) -> Tensor:
    """F_T: sentences -> embeddings, rows of unit length; no network. Says which sentences are too long and are cut.

    Args:
        folder: filled by `fetch`.
        prompts: N whole sentences.
        batch: sentences encoded at a time.

    Returns:
        (N, D) float32, on the CPU.
    """
    text = json.loads((folder / "config.json").read_text())["text_cfg"]
    tokenizer, length = _tokenizer(folder, text)
    long = [prompt for prompt in prompts if length(prompt) > tokenizer.context_length]
    if long:
        say(f"{len(long)} sentences are cut to {tokenizer.context_length} tokens, the first: {long[0][:80]!r}")
    return in_batches(prompts, batch, text_encoder(folder))


def keep_text_half(folder: Path, out: Path) -> None:
    """A folder like that of `fetch` with the text tower alone: what embeds new class names where a model is served.

    open_clip builds both towers or none, so a tiny image tower takes the place of the real one.

    Args:
        folder: filled by `fetch`.
        out: empty.
    """
    config = json.loads((folder / "config.json").read_text())
    config["vision_cfg"] = STAND_IN
    (out / "config.json").write_text(json.dumps(config, indent=1))
    for part in ("tokenizer", "text"):
        if (folder / part).is_dir():
            copy_to(folder / part, out / part)
    net = build(config, out)
    with safe_open(folder / WEIGHTS, "pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys() if not key.startswith("visual.")}  # noqa: SIM118
    missing, extra = net.load_state_dict(state, strict=False)
    assert not extra and all(key.startswith("visual.") for key in missing), (missing, extra)
    save_model(net, str(out / WEIGHTS))


def in_batches(prompts: Sequence[str], batch: int, encode: Encoder) -> Tensor:
    """`encode` over all sentences, without gradients, with a progress bar where it takes long. (N, D)."""
    parts: list[Tensor] = []
    progress, begun = None, time.monotonic()
    with torch.inference_mode():
        for start in range(0, len(prompts), batch):
            parts.append(encode(list(prompts[start : start + batch])))
            done = start + len(parts[-1])
            if progress:
                progress.update(len(parts[-1]))
            elif done < len(prompts) and time.monotonic() - begun > QUIET:
                progress = bar(len(prompts), "text", "sentences", initial=done)
    if progress:
        progress.close()
    return torch.cat(parts).clone()
