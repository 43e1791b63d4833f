"""Where a backbone's weights come from: a seed, the Hugging Face hub, or a checkpoint; nothing in a file is run."""

import functools
import importlib.metadata
import json
import os
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_model
from torch import Tensor, nn

from lfm.backbones import towers
from lfm.backbones.openclip import WEIGHTS, build, hub_tokenizer
from lfm.config.schema import ModelConfig
from lfm.errors import InputError
from lfm.progress import say
from lfm.storage import s3
from lfm.storage.artifact import content_key, home, sha256_file

T = TypeVar("T")

HUB_WAIT = 5.0  # seconds for the Hugging Face hub to answer at all; its own client retries for minutes


def weights_id(model: ModelConfig, seed: int) -> dict[str, Any]:
    """What names the backbone in a content key: its configuration, its preprocessing and where its weights come from.

    A checkpoint counts by the sha256 of its bytes; one at s3:// is downloaded for that, once a process.
    """
    towers.check(model)
    named = {
        "tower": towers.name(model),
        "config": content_key(towers.config_of(model)),
        "preprocess": asdict(towers.preprocess(model)),
    }
    if model.weights == "random":
        versions = {package: importlib.metadata.version(package) for package in ("open_clip_torch", "torch")}
        return {**named, "weights": {"random": seed, **versions}}
    if tag := towers.tag_of(model):
        return {**named, "weights": {"tag": model.weights, "hub": tag["hf_hub"]}}
    return {**named, "weights": {"sha256": sha256_file(_checkpoint(model.weights, home()))}}


@functools.cache
def _checkpoint(weights: str, where: Path) -> Path:
    """The checkpoint as a local file; a remote one is downloaded once a process."""
    if not s3.is_remote(weights):
        return Path(weights)
    path = where / "downloads" / "weights" / f"{content_key(weights)}{Path(weights).suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    s3.download(weights, path)
    return path


def fetch(model: ModelConfig, seed: int, folder: Path) -> None:
    """Fill an empty folder with the model: weights, configuration, preprocessing, tokenizer, info.

    Args:
        model: tower and weights.
        seed: draws `random` weights; the global random state stays as it is.
        folder: gets model.safetensors (both towers and logit_scale, float32), config.json, preprocess.json,
            info.json; tokenizer/ and text/ where these come from the Hugging Face hub.

    Raises:
        InputError: what `towers.check` refuses; weights that cannot be fetched, are no plain tensors, or do not fit.
    """
    towers.check(model)
    config, ready = towers.config_of(model), towers.preprocess(model)
    path = _weights_file(model)
    _fetch_language(config["text_cfg"], folder)
    try:
        net = build(config, folder, seed)
    except Exception as error:
        if not model.tower.endswith(".json"):
            raise
        raise InputError(f"model.tower={model.tower}: open_clip cannot build it: {error}; correct the file") from error
    if path:
        _fill(net, _read_state(path), f"{path} ({towers.name(model)})")
        _warn_of_activation(model, config)
    save_model(net, str(folder / WEIGHTS))
    image = sum(weight.numel() for weight in net.visual.parameters())
    info = {
        "name": towers.name(model),
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
    tag = towers.tag_of(model)
    if tag is None:
        return _checkpoint(model.weights, home())
    tags = towers.open_clip_tags()
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
    name, config, ready = towers.name(model), towers.config_of(model), towers.preprocess(model)
    for tower in (name, f"{name}-quickgelu"):
        twin = ModelConfig(tower=tower, weights=file)
        if tower in towers.built_in() and towers.config_of(twin) == config and towers.preprocess(twin) == ready:
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
            return hub_tokenizer(text, source, local_only)

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
        differences = " and ".join(f"{len(keys)} {word} ({', '.join(keys[:3])})" for word, keys in both.items() if keys)
        raise InputError(f"{what} holds another model's weights: {differences}; set model.tower to that model")
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
    name = towers.name(model)
    twin = f"{name}-quickgelu"
    if towers.tag_of(model) is None and twin in towers.built_in() and not config.get("quick_gelu"):
        say(f"note: {model.weights} is read as {name}; OpenAI's and MetaCLIP's weights need model.tower={twin}")
