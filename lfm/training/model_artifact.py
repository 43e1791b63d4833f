"""The model from the artifacts that it is made of, and what a model artifact says of itself."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfm.config.schema import RunConfig
from lfm.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from lfm.backbones.model import LFM
    from lfm.data.images import Images


def read_text(folder: str | Path) -> "Tensor":
    """Class embeddings of a text artifact, (C, D), rows of unit length."""
    from safetensors.torch import load_file

    text_CD: Tensor = load_file(Path(folder) / "text.safetensors")["text_CD"]
    return text_CD


def new_model(config: RunConfig, dataset: str | Path, text: str | Path, backbone: str | Path) -> "LFM":
    """The model before any training: a pre-trained tower, or conv4 drawn from the seed.

    Args:
        config: the run's configuration.
        dataset: folder of the data set artifact.
        text: folder of the class embeddings.
        backbone: folder of the pre-trained tower.

    Raises:
        InputError: image and text embeddings differ in length.
    """
    from lfm.backbones import towers
    from lfm.backbones.assembly import Assembly
    from lfm.backbones.model import conv4
    from lfm.backbones.openclip import image_tower
    from lfm.data.artifact import read_info

    text_CD = read_text(text)
    assembly = Assembly.of(config, len(text_CD))
    if not towers.uses_open_clip(config.model):
        channels = read_info(Path(dataset))["channels"]
        return assembly.model(conv4(channels, text_CD.shape[1], config.seed), text_CD)
    dim = json.loads((Path(backbone) / "config.json").read_text())["embed_dim"]
    if dim != text_CD.shape[1]:
        raise InputError(
            f"{config.model.tower} embeds images in {dim} dimensions, text.encoder {config.text.encoder} text in "
            f"{text_CD.shape[1]}; set text.encoder=backbone"
        )
    return assembly.model(image_tower(Path(backbone)), text_CD)


def model_info(
    config: RunConfig, info: Mapping[str, Any], images: "Images", backbone: str | Path, prior: Sequence[float]
) -> dict[str, Any]:
    """What a predictor must know besides the weights.

    Args:
        config: the run's configuration.
        info: what the data set artifact says of itself.
        images: the training split.
        backbone: folder of the pre-trained tower.
        prior: class shares that the model's logits stand for, adding up to 1.
    """
    from lfm.backbones import base
    from lfm.backbones.assembly import Assembly
    from lfm.backbones.towers import uses_open_clip

    architecture = None
    if uses_open_clip(config.model):
        architecture = json.loads((Path(backbone) / "config.json").read_text())
    assembly = Assembly.of(config, len(info["classes"]))
    return {
        "tower": config.model.tower,
        "weights": config.model.weights,
        "architecture": architecture,
        "assembly": assembly.kept(),
        "base": base.named(config, backbone) if assembly.on_base else None,
        "channels": info["channels"],
        "image_shape": list(images.shape) if not images.to.size else None,
        "preprocess": info["preprocess"],
        "depth": info.get("depth", {}),
        "classes": info["classes"],
        "counts": info["counts"],
        "temperature": config.loss.divisor,
        "prior": list(prior),
    }
