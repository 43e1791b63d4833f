"""open_clip's towers by name, and one of ours: configurations and preprocessing (over 300 lines: one registry).

Reads open_clip's own files without importing it, which takes seconds, and no weights.
"""

import functools
import importlib
import json
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lfm.backbones import imagenet
from lfm.config.schema import ModelConfig
from lfm.errors import InputError, unknown
from lfm.storage import s3

FILE_KINDS = (".safetensors", ".pt", ".pth", ".bin")
FOLDER = "local-dir:"
"""Begins open_clip's name of a folder that holds a model, as `open_clip.push_to_hf_hub` writes it."""
CONFIG = "open_clip_config.json"
IN_FOLDER = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
)  # fmt: skip
"""Names of a folder's weights, in open_clip's order."""
MINILM_DIM = 384
"""Dimensions of MiniLM's embeddings (`lfm.backbones.text_encoders.minilm_encoder`)."""


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


def uses_open_clip(model: ModelConfig) -> bool:
    """Whether the tower is one of open_clip's; conv4 is not, and has no backbone."""
    return model.tower != "conv4"


def _package() -> Path:
    spec = find_spec("open_clip")
    assert spec and spec.submodule_search_locations, "open_clip is a dependency"
    return Path(next(iter(spec.submodule_search_locations)))


@functools.cache
def built_in() -> dict[str, Path]:
    """open_clip's models, and the one that ImageNet's weights are for: name -> JSON file."""
    return {path.stem: path for path in [*sorted((_package() / "model_configs").glob("*.json")), imagenet.CONFIG]}


@functools.cache
def open_clip_tags() -> Any:
    """open_clip.pretrained, loaded by itself: the package around it takes seconds."""
    if "open_clip" in sys.modules:
        return importlib.import_module("open_clip.pretrained")
    alias = types.ModuleType("_lfm_open_clip")
    alias.__path__ = [str(_package())]
    sys.modules[alias.__name__] = alias
    return importlib.import_module(f"{alias.__name__}.pretrained")


def tags_of(name: str) -> dict[str, dict[str, Any]]:
    """The tower's pre-trained tags and what open_clip knows of each: hub repository, mean, activation ..."""
    if name == imagenet.TOWER:
        return {imagenet.WEIGHTS: imagenet.TAG}
    tags = open_clip_tags()
    return {tag: tags.get_pretrained_cfg(name, tag) for tag in tags.list_pretrained_tags_by_model(name)}


def folder_of(place: str) -> Path | None:
    """The folder that a tower or weights name: `local-dir:FOLDER`, or a folder with open_clip_config.json."""
    if place.startswith(FOLDER):
        return Path(place.removeprefix(FOLDER)).expanduser()
    return Path(place) if (Path(place) / CONFIG).is_file() else None


def config_file(tower: str) -> str:
    """The JSON file of a tower of the user's own, by itself or in a folder; empty for one of open_clip's."""
    if tower.endswith(".json"):
        return tower
    folder = folder_of(tower)
    return str(folder / CONFIG) if folder else ""


def weights_of(model: ModelConfig) -> str:
    """Where the weights are: `random`, a tag, or the path of a checkpoint, also where a folder was named.

    A tower that is a folder brings its weights, if no others are named.

    Raises:
        InputError: a folder without a checkpoint.
    """
    weights = model.weights
    if folder_of(model.tower) and weights == ModelConfig.model_fields["weights"].default:
        weights = model.tower
    folder = folder_of(weights)
    if folder is None:
        return weights
    inside = {path.name: path for path in sorted(folder.glob("*")) if path.suffix in FILE_KINDS}
    found = next((inside[name] for name in IN_FOLDER if name in inside), None)
    if found is None and len(inside) == 1:
        (found,) = inside.values()
    if found is None:
        several = f"several ({', '.join(inside)})" if inside else "none"
        raise InputError(
            f"{folder} should hold a checkpoint, as {IN_FOLDER[0]}, but holds {several}; set model.weights to a file, "
            "or to random"
        )
    return str(found)


def name(model: ModelConfig) -> str:
    """open_clip's name of the tower: ViT-B/32 -> ViT-B-32, ViT-L/14@336px -> ViT-L-14-336; a path of one's own stays.

    Raises:
        InputError: no such model; the nearest name is given.
    """
    if config_file(model.tower):
        return model.tower
    plain = model.tower.replace("/", "-").replace("@", "-").removesuffix("px")
    known = {known.lower(): known for known in built_in()}
    if plain.lower() not in known:
        raise unknown("tower", plain, ["conv4", *built_in()])
    return known[plain.lower()]


def _own_file(tower: str) -> dict[str, Any]:
    """The user's JSON: a model configuration, or open_clip_config.json with model_cfg and preprocess_cfg."""
    tower = config_file(tower)
    rule = "needs embed_dim, vision_cfg and text_cfg, as open_clip's model_configs/*.json or open_clip_config.json"
    try:
        raw = json.loads(s3.read(tower) if s3.is_remote(tower) else Path(tower).read_bytes())
    except OSError as error:
        raise InputError(f"model.tower={tower} cannot be read ({error.strerror}); give the path of a file") from error
    except ValueError as error:
        raise InputError(f"model.tower={tower} is not JSON ({error}); it {rule}") from error
    whole = raw if isinstance(raw, dict) and "model_cfg" in raw else {"model_cfg": raw}
    config = whole["model_cfg"]
    if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
        raise InputError(f"model.tower={tower} is no model configuration; it {rule}")
    return whole


def tag_of(model: ModelConfig) -> dict[str, Any] | None:
    """What open_clip knows of the pre-trained tag; None: the weights are random or a file."""
    if model.weights == "random" or config_file(model.tower):
        return None
    tags = tags_of(name(model))
    return tags.get(model.weights) or tags.get(model.weights.lower().replace("-", "_"))


def config_of(model: ModelConfig, own_text: bool = True) -> dict[str, Any]:
    """open_clip's configuration of the model, with the activation that its weights were trained with.

    Args:
        model: tower and weights.
        own_text: whether its text tower is used. If not, nothing is asked for that comes from the hub for text alone,
            and a tower of random weights is drawn with MiniLM's dimensions: it is free to have any.
    """
    own = config_file(model.tower)
    config: dict[str, Any] = (
        _own_file(model.tower)["model_cfg"] if own else json.loads(built_in()[name(model)].read_bytes())
    )
    # open_clip only warns when the tag says QuickGELU and the configuration does not, and loses points of accuracy.
    if (tag_of(model) or {}).get("quick_gelu"):
        config["quick_gelu"] = True
    if model.image_size:
        config["vision_cfg"]["image_size"] = model.image_size
    return config if own_text else _for_minilm(model, config)


def _for_minilm(model: ModelConfig, config: dict[str, Any]) -> dict[str, Any]:
    text, vision = dict(config["text_cfg"]), dict(config["vision_cfg"])
    if text.get("hf_model_name"):
        text = {}  # even its configuration is on the hub
    text.pop("hf_tokenizer_name", None)
    own_dim = config["embed_dim"]
    dim = MINILM_DIM if model.weights == "random" else own_dim
    if dim != own_dim and vision.get("timm_proj") == "none":
        vision["timm_proj"] = "linear"  # what the trunk gives has dimensions of its own
    return {**config, "embed_dim": dim, "text_cfg": text, "vision_cfg": vision}


def has_text(model: ModelConfig) -> bool:
    """Whether the model has a text tower."""
    return uses_open_clip(model) and bool(config_of(model)["text_cfg"])


def check_text(model: ModelConfig) -> None:
    """Refuse a tower whose images cannot be compared with text of MiniLM.

    Raises:
        InputError: pre-trained weights of other dimensions.
    """
    dim = config_of(model, own_text=False)["embed_dim"]
    if dim != MINILM_DIM:
        raise InputError(
            f"{model.tower} {model.weights} embeds images in {dim} dimensions, text.encoder minilm text in {MINILM_DIM}"
            "; set text.encoder=backbone, or model.weights=random"
        )


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
    weights, tower = weights_of(model), name(model)
    imagenet.check_size(model.image_size, tower)
    if tag := tag_of(model):
        return imagenet.check_tag(tag)
    if weights == "random":
        return
    tags = [*tags_of(tower)]
    other = f"; known: {', '.join([*tags, 'random'])}, or the path of a checkpoint ({', '.join(FILE_KINDS)})"
    if "/" not in weights and Path(weights).suffix not in FILE_KINDS:
        raise InputError(str(unknown(f"weights of {tower}:", weights, tags)).partition("; known")[0] + other)
    if Path(weights).suffix not in FILE_KINDS:
        raise InputError(f"model.weights={weights} ends in none of {', '.join(FILE_KINDS)}; save the weights as one")
    if not (s3.exists(weights) if s3.is_remote(weights) else Path(weights).is_file()):
        raise InputError(f"model.weights={weights} is not there; give the path of a checkpoint{other}")


def preprocess(model: ModelConfig) -> Preprocess:
    """How images must be prepared for these weights; reads no weights.

    A tag says it itself, a JSON file in its preprocess_cfg. A checkpoint or random weights of a named tower: as the
    tower's tags do where these agree, else as CLIP.

    Raises:
        InputError: unknown tower, oblong images, or a way of resizing that is not supported.
    """
    assert uses_open_clip(model)
    size = config_of(model)["vision_cfg"].get("image_size", DEFAULT.size)
    sides = set(size) if isinstance(size, list) else {size}
    if len(sides) != 1:
        raise InputError(f"{name(model)} takes images of {size} pixels; only square ones are supported: another tower")
    found: dict[str, Any] = {}
    if config_file(model.tower):
        found = _own_file(model.tower).get("preprocess_cfg") or {}
    elif tag := tag_of(model):
        found = tag
    else:
        found = _agreed(list(tags_of(name(model)).values()))
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
