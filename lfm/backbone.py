"""Any open_clip model as a folder on disk: both towers, tokenizer, preprocessing (paper.md section 1, F_I and F_T).

`fetch` fills the folder once, from random weights, a pre-trained tag or a checkpoint; `image_tower` and `embed_prompts`
read it without a network. Letters give shapes: N sentences, B images, D embedding dimensions.
"""

import functools
import importlib
import importlib.metadata
import json
import os
import sys
import time
import types
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_model
from torch import Tensor, nn

from lfm import storage
from lfm.artifact import content_key, copy_to, home, sha256_file
from lfm.config import InputError, ModelConfig, unknown
from lfm.progress import bar, say

T = TypeVar("T")

WEIGHTS = "model.safetensors"
FILE_KINDS = (".safetensors", ".pt", ".pth", ".bin")
HUB_WAIT = 5.0  # seconds for the Hugging Face hub to answer at all; its own client retries for minutes
QUIET = 2.0  # seconds of encoding before a progress bar appears
STAND_IN = {"image_size": 16, "patch_size": 16, "layers": 1, "width": 32, "head_width": 32}


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the tower's input.

    Args:
        size: height and width in pixels; 0: the image's own.
        mean: subtracted from each channel of an image in [0, 1].
        std: divides each channel.
        interpolation: "bicubic" or "bilinear".
        resize_mode: "shortest" (scale the shorter side, crop the centre) or "squash" (scale both sides).
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    resize_mode: str

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> "Preprocess":
        """From its fields as JSON keeps them."""
        return cls(**{**kept, "mean": tuple(kept["mean"]), "std": tuple(kept["std"])})


# open_clip's own default, which is CLIP's.
DEFAULT = Preprocess(
    224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), "bicubic", "shortest"
)


# Names and configurations, without importing open_clip, which takes seconds.


def uses_open_clip(model: ModelConfig) -> bool:
    """Whether the tower is one of open_clip's; conv4 is not, and has no backbone."""
    return model.tower != "conv4"


def _package() -> Path:
    spec = find_spec("open_clip")
    assert spec and spec.submodule_search_locations, "open_clip is a dependency"
    return Path(next(iter(spec.submodule_search_locations)))


@functools.cache
def _built_in() -> dict[str, Path]:
    """open_clip's models: name -> JSON file."""
    return {path.stem: path for path in sorted((_package() / "model_configs").glob("*.json"))}


@functools.cache
def _tags() -> Any:
    """open_clip.pretrained, loaded by itself: the package around it takes seconds."""
    if "open_clip" in sys.modules:
        return importlib.import_module("open_clip.pretrained")
    alias = types.ModuleType("_lfm_open_clip")
    alias.__path__ = [str(_package())]
    sys.modules[alias.__name__] = alias
    return importlib.import_module(f"{alias.__name__}.pretrained")


def _tags_of(name: str) -> dict[str, dict[str, Any]]:
    tags = _tags()
    return {tag: tags.get_pretrained_cfg(name, tag) for tag in tags.list_pretrained_tags_by_model(name)}


def name(model: ModelConfig) -> str:
    """open_clip's name of the tower: ViT-B/32 -> ViT-B-32, ViT-L/14@336px -> ViT-L-14-336; a path to JSON stays.

    Raises:
        InputError: no such model; the nearest name is given.
    """
    if model.tower.endswith(".json"):
        return model.tower
    plain = model.tower.replace("/", "-").replace("@", "-").removesuffix("px")
    known = {known.lower(): known for known in _built_in()}
    if plain.lower() not in known:
        raise unknown("tower", plain, ["conv4", *_built_in()])
    return known[plain.lower()]


def _own_file(tower: str) -> dict[str, Any]:
    """The user's JSON: a model configuration, or open_clip_config.json with model_cfg and preprocess_cfg."""
    rule = "needs embed_dim, vision_cfg and text_cfg, as open_clip's model_configs/*.json or open_clip_config.json"
    try:
        raw = json.loads(storage.read(tower) if storage.is_remote(tower) else Path(tower).read_bytes())
    except OSError as error:
        raise InputError(f"model.tower={tower} cannot be read ({error.strerror}); give the path of a file") from error
    except ValueError as error:
        raise InputError(f"model.tower={tower} is not JSON ({error}); it {rule}") from error
    whole = raw if isinstance(raw, dict) and "model_cfg" in raw else {"model_cfg": raw}
    config = whole["model_cfg"]
    if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
        raise InputError(f"model.tower={tower} is no model configuration; it {rule}")
    return whole


def _tag(model: ModelConfig) -> dict[str, Any] | None:
    """What open_clip knows of the pre-trained tag; None: the weights are random or a file."""
    if model.weights == "random" or model.tower.endswith(".json"):
        return None
    tag = model.weights.lower().replace("-", "_")
    return _tags_of(name(model)).get(tag)


def _config(model: ModelConfig) -> dict[str, Any]:
    """open_clip's configuration of the model, with the activation that its weights were trained with."""
    own = model.tower.endswith(".json")
    config: dict[str, Any] = (
        _own_file(model.tower)["model_cfg"] if own else json.loads(_built_in()[name(model)].read_bytes())
    )
    # open_clip only warns when the tag says QuickGELU and the configuration does not, and loses points of accuracy.
    if (_tag(model) or {}).get("quick_gelu"):
        config["quick_gelu"] = True
    return config


def check(model: ModelConfig) -> None:
    """Refuse an unknown tower or unknown weights before any work.

    Raises:
        InputError: unknown tower, tag or file kind, a missing file, or preprocessing that is not supported.
    """
    if not uses_open_clip(model):
        if model.weights not in ("random", ModelConfig.model_fields["weights"].default):
            raise InputError(f"conv4 is always trained from scratch; model.weights={model.weights} must be random")
        return
    preprocess(model)
    weights, tower = model.weights, name(model)
    if weights == "random" or _tag(model):
        return
    tags = list(_tags_of(tower))
    other = f"; known: {', '.join([*tags, 'random'])}, or the path of a checkpoint ({', '.join(FILE_KINDS)})"
    if "/" not in weights and Path(weights).suffix not in FILE_KINDS:
        near = str(unknown(f"weights of {tower}:", weights, tags))
        raise InputError(near.partition("; known")[0] + other)
    if Path(weights).suffix not in FILE_KINDS:
        raise InputError(f"model.weights={weights} ends in none of {', '.join(FILE_KINDS)}; save the weights as one")
    if not (storage.exists(weights) if storage.is_remote(weights) else Path(weights).is_file()):
        raise InputError(f"model.weights={weights} is not there; give the path of a checkpoint{other}")


def preprocess(model: ModelConfig) -> Preprocess:
    """How images must be prepared for these weights; reads no weights.

    A tag says it itself, a JSON file in its preprocess_cfg. A checkpoint or random weights of a named tower: as the
    tower's tags do where these agree, else as CLIP.

    Raises:
        InputError: unknown tower, oblong images, or a way of resizing that is not supported.
    """
    assert uses_open_clip(model)
    size = _config(model)["vision_cfg"].get("image_size", DEFAULT.size)
    sides = set(size) if isinstance(size, list) else {size}
    if len(sides) != 1:
        raise InputError(f"{name(model)} takes images of {size} pixels; only square ones are supported: another tower")
    found: dict[str, Any] = {}
    if model.tower.endswith(".json"):
        found = _own_file(model.tower).get("preprocess_cfg") or {}
    elif tag := _tag(model):
        found = tag
    else:
        found = _agreed(list(_tags_of(name(model)).values()))
    return _checked(name(model), replace(DEFAULT, size=int(sides.pop())), found)


def _agreed(tags: list[dict[str, Any]]) -> dict[str, Any]:
    first = tags[0] if tags else {}
    return {key: value for key, value in first.items() if all(tag.get(key) == value for tag in tags)}


def _checked(tower: str, default: Preprocess, found: dict[str, Any]) -> Preprocess:
    def channels(key: str, value: Any) -> tuple[float, ...]:
        values = value if isinstance(value, list | tuple) else [value] * 3
        return tuple(float(v) for v in values)

    mean, std = (channels(key, found.get(key) or getattr(default, key)) for key in ("mean", "std"))
    interpolation = found.get("interpolation") or default.interpolation
    resize_mode = found.get("resize_mode") or default.resize_mode
    if resize_mode not in ("shortest", "squash"):
        raise InputError(f"{tower} resizes images by {resize_mode!r}, which is not supported; use shortest or squash")
    if interpolation not in ("bicubic", "bilinear"):
        raise InputError(f"{tower} interpolates by {interpolation!r}, which is not supported; use bicubic or bilinear")
    return replace(default, mean=mean, std=std, interpolation=interpolation, resize_mode=resize_mode)


# The weights: from a seed, the Hugging Face hub, or a checkpoint.


def weights_id(model: ModelConfig, seed: int) -> dict[str, Any]:
    """What names the backbone in a content key: its configuration, its preprocessing and where its weights come from.

    A checkpoint counts by the sha256 of its bytes; one at s3:// is downloaded for that, once a process.
    """
    check(model)
    named = {"tower": name(model), "config": content_key(_config(model)), "preprocess": asdict(preprocess(model))}
    if model.weights == "random":
        versions = {package: importlib.metadata.version(package) for package in ("open_clip_torch", "torch")}
        return {**named, "weights": {"random": seed, **versions}}
    if tag := _tag(model):
        return {**named, "weights": {"tag": model.weights, "hub": tag["hf_hub"]}}
    return {**named, "weights": {"sha256": sha256_file(_checkpoint(model.weights, home()))}}


@functools.cache
def _checkpoint(weights: str, where: Path) -> Path:
    """The checkpoint as a local file; a remote one is downloaded once a process."""
    if not storage.is_remote(weights):
        return Path(weights)
    path = where / "downloads" / "weights" / f"{content_key(weights)}{Path(weights).suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.download(weights, path)
    return path


def fetch(model: ModelConfig, seed: int, folder: Path) -> None:
    """Fill an empty folder with the model: weights, configuration, preprocessing, tokenizer, info.

    Args:
        model: tower and weights.
        seed: draws `random` weights; the global random state stays as it is.
        folder: gets model.safetensors (both towers and logit_scale, float32), config.json, preprocess.json,
            info.json; tokenizer/ and text/ where these come from the Hugging Face hub.

    Raises:
        InputError: what `check` refuses; weights that cannot be fetched, are no plain tensors, or do not fit.
    """
    check(model)
    config, ready = _config(model), preprocess(model)
    path = _weights_file(model)
    _fetch_language(config["text_cfg"], folder)
    try:
        net = _build(config, folder, seed)
    except Exception as error:
        if not model.tower.endswith(".json"):
            raise
        raise InputError(f"model.tower={model.tower}: open_clip cannot build it: {error}; mend the file") from error
    if path:
        _fill(net, _read_state(path), f"{path} ({name(model)})")
        _warn_of_activation(model, config)
    save_model(net, str(folder / WEIGHTS))
    image = sum(weight.numel() for weight in net.visual.parameters())
    info = {
        "name": name(model),
        "weights": model.weights,
        "embed_dim": config["embed_dim"],
        "image_size": ready.size,
        "open_clip": importlib.metadata.version("open_clip_torch"),
        "sha256": sha256_file(folder / WEIGHTS),
        "parameters": {"image": image, "all": sum(weight.numel() for weight in net.parameters())},
    }
    for file, content in {"config": config, "preprocess": asdict(ready), "info": info}.items():
        (folder / f"{file}.json").write_text(json.dumps(content, indent=1))


def _weights_file(model: ModelConfig) -> Path | None:
    """The file that holds the weights; None for random ones."""
    if model.weights == "random":
        return None
    tag = _tag(model)
    if tag is None:
        return _checkpoint(model.weights, home())
    tags = _tags()
    repo, _, file = tag["hf_hub"].rpartition("/")
    files = [f"{Path(file).stem}.safetensors", file] if file else [tags.HF_SAFE_WEIGHTS_NAME, tags.HF_WEIGHTS_NAME]

    def get(local_only: bool) -> Path:
        for file in files[:-1]:
            try:
                return Path(tags.hf_hub_download(repo, file, local_files_only=local_only))
            except OSError:  # not in the cache, or not in the repository
                continue
        return Path(tags.hf_hub_download(repo, files[-1], local_files_only=local_only))

    main = files[-1] if file else files[0]
    return _from_hub(get, repo, main, main, _instead(model, main))


def _instead(model: ModelConfig, file: str) -> str:
    """Settings that give the tag's weights, activation and preprocessing from a file; empty where none do."""
    for tower in (name(model), f"{name(model)}-quickgelu"):
        twin = ModelConfig(tower=tower, weights=file)
        if tower in _built_in() and _config(twin) == _config(model) and preprocess(twin) == preprocess(model):
            return f"model.tower={tower} model.weights=/path/to/{file}"
    return ""


def _from_hub(get: Callable[[bool], T], repo: str, what: str, files: str, instead: str = "") -> T:
    """`get(True)` reads the local cache, `get(False)` the hub; asked only where it answers.

    Raises:
        InputError: neither has it; says what is missing, its repository and how to bring it here.
    """
    with suppress(Exception):  # the clients raise dozens of kinds
        return get(True)
    reason = _silence()
    if not reason:
        try:
            return get(False)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else repr(error)
    raise InputError(
        f"cannot fetch {what} of Hugging Face repository {repo}: {reason}. Where there is a network, run "
        f"`hf download {repo} {files}`, then copy that machine's ~/.cache/huggingface/hub to the same place here "
        "(or name its place in HF_HUB_CACHE)" + (f"; or copy the file alone and set {instead}" if instead else "")
    )


def _silence() -> str:
    """Why the hub cannot be asked; empty if it can."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return "HF_HUB_OFFLINE forbids it"
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(hub, method="HEAD"), timeout=HUB_WAIT).close()  # noqa: S310
    except urllib.error.HTTPError:
        return ""  # an answer, if not a page
    except (OSError, ValueError) as error:
        return f"{hub} does not answer ({getattr(error, 'reason', error)})"
    return ""


def _fetch_language(text: dict[str, Any], folder: Path) -> None:
    """Keep what the text tower needs from the hub: tokenizer/, and text/ with the configuration of a hub's tower."""
    if source := str(text.get("hf_tokenizer_name") or ""):

        def tokenizer(local_only: bool) -> Any:
            return _hub_tokenizer(text, source, local_only)

        _from_hub(tokenizer, source, "the tokenizer", "--include '*.json' '*.txt' '*.model'").save_pretrained(
            folder / "tokenizer"
        )
    if encoder := text.get("hf_model_name"):
        from transformers import AutoConfig

        def configuration(local_only: bool) -> Any:
            return AutoConfig.from_pretrained(encoder, local_files_only=local_only)

        _from_hub(configuration, encoder, "config.json", "config.json").save_pretrained(folder / "text")


def _read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, names as open_clip has them; nothing in the file is run.

    Raises:
        InputError: TorchScript, pickled objects, a broken file, or no tensors.
    """
    convert = "from safetensors.torch import save_file; save_file({{k: v.contiguous() for k, v in {}.items()}}, {!r})"
    target = str(path.with_suffix(".safetensors"))
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        elif _is_torchscript(path):
            script = convert.format(f"torch.jit.load({str(path)!r}, 'cpu').state_dict()", target)
            raise InputError(
                f"{path} is a TorchScript program, as OpenAI's own files are, and may run code; where you trust it, "
                f'turn it into plain weights: python -c "import torch; {script}"'
            )
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # a damaged file can come to anything
        script = convert.format("model.state_dict()", target)
        raise InputError(
            f"{path} is damaged or holds pickled objects beside plain tensors ({type(error).__name__}); it was not "
            f"loaded, as that could run code. Where you trust it, save its weights alone: {script}"
        ) from error
    while isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} is no state dict (name -> tensor); save one: {convert.format('model', target)}")
    if all(key.startswith("module.") for key in state):  # the mark of DistributedDataParallel
        state = {key.removeprefix("module."): value for key, value in state.items()}
    for key in ("input_resolution", "context_length", "vocab_size"):  # OpenAI's files carry these as tensors
        state.pop(key, None)
    return dict(state)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(entry.endswith("/constants.pkl") for entry in archive.namelist())


def _fill(net: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Give the model its weights; every one must be there and fit.

    Position embeddings of another image size or context length are interpolated, as open_clip does.

    Raises:
        InputError: names the weights that are missing, not known, or of another shape.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed

    own = net.state_dict()
    state = convert_state_dict(net, state)
    if "positional_embedding" in state and "positional_embedding" not in own:
        state = convert_to_custom_text_state_dict(state)
    if "logit_bias" in own and "logit_scale" in state:  # a model of CLIP's kind in SigLIP's clothes
        state.setdefault("logit_bias", torch.zeros_like(state["logit_scale"]))
    for key in ("logit_scale", "logit_bias"):
        if key in state and key in own and state[key].numel() == 1:
            state[key] = state[key].reshape(own[key].shape)
    unused = "text.transformer.embeddings.position_ids"
    if unused not in own:
        state.pop(unused, None)
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        both = {"missing": missing, "unknown": extra}
        told = " and ".join(f"{len(keys)} {word} ({', '.join(keys[:3])})" for word, keys in both.items() if keys)
        raise InputError(f"{what} holds another model's weights: {told}; set model.tower to that model")
    grown = ("visual.positional_embedding", "positional_embedding", "text.positional_embedding")
    for key, value in own.items():
        first = 1 if key in grown else 0  # their first size may differ
        if value.dim() != state[key].dim() or value.shape[first:] != state[key].shape[first:]:
            shapes = f"{tuple(state[key].shape)} where the model has {tuple(value.shape)}"
            raise InputError(f"{what} holds another model's weights: {key} is {shapes}; set model.tower to that model")
    resize_pos_embed(state, net)
    resize_text_pos_embed(state, net)
    net.load_state_dict(state)


def _warn_of_activation(model: ModelConfig, config: dict[str, Any]) -> None:
    """A file does not say its activation, and the wrong one loses points of accuracy in silence."""
    twin = f"{name(model)}-quickgelu"
    if _tag(model) is None and twin in _built_in() and not config.get("quick_gelu"):
        say(f"note: {model.weights} is read as {name(model)}; OpenAI's and MetaCLIP's weights need model.tower={twin}")


# The folder as modules and embeddings.


def _build(config: dict[str, Any], folder: Path, seed: int = 0) -> Any:
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


def load(folder: Path) -> nn.Module:
    """open_clip's whole model from what `fetch` left, without a network: float32, on the CPU, in eval mode."""
    net: nn.Module = _build(json.loads((folder / "config.json").read_text()), folder)
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


def _hub_tokenizer(text: dict[str, Any], source: str, local_only: bool) -> Any:
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
        hub = _hub_tokenizer(text, str(folder / "tokenizer"), local_only=True)
        return hub, lambda prompt: len(hub.tokenizer(prompt, verbose=False).input_ids)
    from open_clip.tokenizer import SimpleTokenizer

    simple = SimpleTokenizer(context_length=text.get("context_length", 77), **text.get("tokenizer_kwargs", {}))
    return simple, lambda prompt: len(simple.encode(prompt)) + 2  # its start and end


Encoder = Callable[[list[str]], Tensor]
"""Sentences -> embeddings, rows of unit length, (N, D) float32 on the CPU."""


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
    net = _build(config, out)
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
