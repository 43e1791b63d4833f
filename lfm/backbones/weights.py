"""Where a backbone's weights come from: a seed, the Hugging Face hub, or a checkpoint; nothing in a file is run."""

import functools
import importlib.metadata
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from lfm.backbones import imagenet, towers
from lfm.backbones.checkpoint_files import check_finite, read_state
from lfm.backbones.openclip import WEIGHTS, build, build_image_alone, hub_tokenizer
from lfm.config.schema import ModelConfig
from lfm.errors import InputError
from lfm.progress import say
from lfm.storage import s3
from lfm.storage.artifact import content_key, home, sha256_file

T = TypeVar("T")

HUB_WAIT = 5.0  # seconds for the Hugging Face hub to answer at all; its own client retries for minutes


def weights_id(model: ModelConfig, seed: int, own_text: bool = True) -> dict[str, Any]:
    """What names the backbone in a content key: its configuration, its preprocessing and where its weights come from.

    A checkpoint counts by the sha256 of its bytes; one at s3:// is downloaded for that, once a process.

    Args:
        model: tower and weights.
        seed: draws `random` weights.
        own_text: as in `fetch`.
    """
    towers.check(model)
    named = {
        "tower": towers.name(model),
        "config": content_key(towers.config_of(model, own_text)),
        "preprocess": asdict(towers.preprocess(model)),
    }
    if own_text and (beside := _tokenizer_beside(model)):
        named["tokenizer"] = {path.name: sha256_file(path) for path in sorted(beside.glob("*token*"))}
    if model.weights == "random":
        versions = {package: importlib.metadata.version(package) for package in ("open_clip_torch", "torch")}
        return {**named, "weights": {"random": seed, **versions}}
    if not model.aligned:
        return {**named, "weights": {"sha256": imagenet.SHA256}}
    if tag := towers.tag_of(model):
        return {**named, "weights": {"tag": model.weights, "hub": tag["hf_hub"]}}
    return {**named, "weights": {"sha256": sha256_file(_checkpoint(towers.weights_of(model), home()))}}


@functools.cache
def _checkpoint(weights: str, where: Path) -> Path:
    """The checkpoint as a local file; a remote one is downloaded once a process."""
    if not s3.is_remote(weights):
        return Path(weights)
    path = where / "downloads" / "weights" / f"{content_key(weights)}{Path(weights).suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    s3.download(weights, path)
    return path


def fetch(model: ModelConfig, seed: int, folder: Path, own_text: bool = True) -> None:
    """Fill an empty folder with the model: weights, configuration, preprocessing, tokenizer, info.

    Args:
        model: tower and weights.
        seed: draws `random` weights; the global random state stays as it is.
        folder: gets model.safetensors (both towers and logit_scale, float32), config.json, preprocess.json,
            info.json; tokenizer/ and text/ where these come from the Hugging Face hub.
        own_text: whether its text tower will embed the class names. If not, no tokenizer is fetched, and a text tower
            whose configuration is on the hub is left out.

    Raises:
        InputError: what `towers.check` refuses; weights that cannot be fetched, are no plain tensors, or do not fit.
    """
    towers.check(model)
    config, ready = towers.config_of(model, own_text), towers.preprocess(model)
    if own_text:
        _fetch_language(config["text_cfg"], folder, _tokenizer_beside(model))
    path = _weights_file(model) if model.aligned else None
    try:
        net = build(config, folder, seed) if config["text_cfg"] else build_image_alone(config, seed)
    except Exception as error:
        if not model.tower.endswith(".json"):
            raise
        raise InputError(f"model.tower={model.tower}: open_clip cannot build it: {error}; correct the file") from error
    if path:
        _fill(net, path, f"{path} ({towers.name(model)})", image_alone=not config["text_cfg"])
        _warn_of_activation(model, config)
    elif not model.aligned:
        imagenet.fill(net.visual)
        say(f"{model.weights}: trained on ImageNet, {imagenet.LICENCE}; kept as safetensors")
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
        return _checkpoint(towers.weights_of(model), home())
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


def _tokenizer_beside(model: ModelConfig) -> Path | None:
    """The folder of the tower, where it holds a tokenizer, as open_clip's folders do."""
    folder = towers.folder_of(model.tower)
    return folder if folder and any((folder / f"tokenizer{end}.json").is_file() for end in ("", "_config")) else None


def _fetch_language(text: dict[str, Any], folder: Path, beside: Path | None) -> None:
    """Keep what the text tower needs from the hub: tokenizer/, and text/ with the configuration of a hub's tower."""
    if text.get("hf_tokenizer_name") and beside:
        hub_tokenizer(text, str(beside), True).save_pretrained(folder / "tokenizer")
    elif source := str(text.get("hf_tokenizer_name") or ""):

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


def _fill(net: nn.Module, path: Path, what: str, image_alone: bool) -> None:
    """Give the model its weights; every one must be there, fit and be finite.

    Position embeddings of another image size or context length are interpolated, as open_clip does.

    Args:
        net: of `build` or `build_image_alone`.
        path: of the checkpoint.
        what: the file and the model, for an error.
        image_alone: whether only the image tower is wanted.

    Raises:
        InputError: names the weights that are missing, not known, of another shape, or not finite.
    """
    from open_clip.model import resize_pos_embed, resize_text_pos_embed

    own = net.state_dict()
    state = _by_own_names(net, read_state(path, own.keys()), image_alone)
    _check_fit(own, state, what)
    check_finite(state, what)
    resize_pos_embed(state, net)
    if not image_alone:
        resize_text_pos_embed(state, net)
    net.load_state_dict(state)


def _by_own_names(net: nn.Module, state: dict[str, Tensor], image_alone: bool) -> dict[str, Tensor]:
    """The tensors as open_clip's loader would name them for this model."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    own, state = net.state_dict(), convert_state_dict(net, state)
    if image_alone:
        return {key: value for key, value in state.items() if key.startswith("visual.")}
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
    return dict(state)


def _check_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], what: str) -> None:
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


def _warn_of_activation(model: ModelConfig, config: dict[str, Any]) -> None:
    """A file does not say its activation, and the wrong one loses points of accuracy in silence."""
    name = towers.name(model)
    twin = f"{name}-quickgelu"
    if towers.tag_of(model) is None and twin in towers.built_in() and not config.get("quick_gelu"):
        say(f"note: {model.weights} is read as {name}; OpenAI's and MetaCLIP's weights need model.tower={twin}")
