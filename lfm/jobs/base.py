"""The towers that a model which keeps only what was tuned needs, found or fetched."""

import json
from pathlib import Path

from lfm.backbones import base
from lfm.config.schema import ModelConfig, TextConfig
from lfm.errors import InputError
from lfm.jobs.prepare import backbone_for
from lfm.storage.artifact import read_manifest


def base_of(model: Path) -> Path | None:
    """The folder of the untouched towers; None for a model that is whole.

    Args:
        model: a model artifact, or one made for serving.

    Raises:
        InputError: they are not in the store and cannot be fetched, or what is fetched are other weights.
    """
    wanted = json.loads((model / "info.json").read_text()).get("base")
    if not wanted:
        return None
    try:
        return base.find(wanted)
    except InputError:
        config = ModelConfig(tower=wanted["tower"], weights=wanted["weights"])
        folder, _ = backbone_for(config, wanted["seed"], TextConfig(encoder=wanted["encoder"]))
    if (found := str(read_manifest(folder)["content"])) != wanted["content"]:
        raise InputError(
            f"this model was tuned from {wanted['tower']} with weights {wanted['weights']} of content "
            f"{wanted['content'][:12]}; what is found under that name here is {found[:12]}. Bring the home or the "
            "weights that it was trained with"
        )
    return folder
