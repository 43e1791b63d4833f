"""The untouched tower that a model was tuned from, where the model keeps only what was tuned."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lfm.config.schema import RunConfig
from lfm.errors import InputError
from lfm.storage.artifact import MANIFEST, home, read_manifest, verify


def named(config: RunConfig, folder: str | Path) -> dict[str, Any]:
    """What names a base, and what it can be fetched again by.

    Args:
        config: of the run.
        folder: of the pre-trained towers.
    """
    return {
        "tower": config.model.tower,
        "weights": config.model.weights,
        "seed": config.seed,
        "encoder": config.text.encoder,
        "content": str(read_manifest(Path(folder))["content"]),
    }


def find(base: Mapping[str, Any]) -> Path:
    """The folder of a base in this machine's store.

    Args:
        base: of `named`.

    Raises:
        InputError: it is not there, or was changed.
    """
    for manifest in sorted((home() / "store" / "backbone").glob(f"*/{MANIFEST}")):
        if read_manifest(manifest.parent)["content"] == base["content"]:
            verify(manifest.parent)
            return manifest.parent
    raise InputError(
        f"this model keeps only what was tuned, and {home()} has not the tower that it was tuned from, {base['tower']} "
        f"with weights {base['weights']} (content {base['content'][:12]}); `lfm serve` or `lfm predict` with this "
        "model fetches it, or set LFM_HOME to a home that has it"
    )
