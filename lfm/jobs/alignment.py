"""The job that gives a tower without text its projection into the text space (`lfm.backbones.ridge`)."""

import json
from pathlib import Path
from typing import Any

from lfm.config.schema import ModelConfig
from lfm.jobs.step import content, say_result, step
from lfm.progress import say
from lfm.storage.artifact import link, sha256_file
from lfm.storage.handover import hand_over, resolve
from lfm.storage.import_closure import source_hash
from lfm.storage.store import build_once

MOST_IMAGES, BATCH = 20_000, 64
"""Training images that a projection is fitted to: of more, the first ones of each class, at most as many of each."""


@step
def align_backbone(model: dict[str, Any], dataset: str, text: str, backbone: str) -> None:
    """Put a backbone with a fitted projection in the place of one that knows no text; leave others as they are.

    Args:
        model: tower and weights.
        dataset: folder of the data set artifact.
        text: folder of the class embeddings.
        backbone: folder of the pre-trained tower; gets the new one.
    """
    from lfm.tracking import pipeline_run

    if ModelConfig.model_validate(model).aligned:
        return
    with pipeline_run.step_run("align backbone"):
        given = (Path(resolve(path, "prepare")) for path in (dataset, text, backbone))
        folder, reused = aligned(*given)
        say_result("projection", folder, reused)
        hand_over(folder, backbone)


def aligned(dataset: Path, text: Path, backbone: Path) -> tuple[Path, bool]:
    """The backbone with the projection that fits the training images, from the store or made; whether it was there."""
    inputs = {
        "dataset": content(dataset),
        "text": content(text),
        "backbone": content(backbone),
        "code": source_hash(__name__),
    }
    return build_once("backbone", inputs, lambda aside: _align(dataset, text, backbone, aside))


def _align(dataset: Path, text: Path, backbone: Path, aside: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from lfm.backbones.openclip import WEIGHTS, image_tower
    from lfm.backbones.ridge import STRENGTHS, balanced_ridge
    from lfm.data.images import open_split
    from lfm.progress import bar

    images, tower = open_split(dataset, "train"), image_tower(backbone)
    trunk = tower.get_submodule("trunk").to(memory_format=torch.channels_last)
    text_CD = load_file(text / "text.safetensors")["text_CD"]
    index_N = first_of_each(images.label_N, MOST_IMAGES // len(text_CD))
    features = []
    with torch.inference_mode(), bar(len(index_N), "projection", "images") as progress:
        for some in index_N.split(BATCH):
            features.append(trunk(images.exact(some)))
            progress.update(len(some))
    feature_NF = torch.cat(features)
    fitted = balanced_ridge(feature_NF, images.label_N[index_N], text_CD)

    state = load_file(backbone / WEIGHTS)
    state |= {"visual.head.proj.weight": fitted.weight_DF, "visual.head.proj.bias": fitted.bias_D}
    save_file(state, aside / WEIGHTS)
    for name in ("config.json", "preprocess.json"):
        link(backbone / name, aside / name)
    info = json.loads((backbone / "info.json").read_text()) | {"sha256": sha256_file(aside / WEIGHTS)}
    ridge = {
        "images": len(index_N),
        "penalty": fitted.penalty,
        "strengths": STRENGTHS,
        "errors": fitted.errors_S.tolist(),
    }
    (aside / "info.json").write_text(json.dumps(info | {"ridge": ridge}, indent=1))
    error, strength = min(zip(fitted.errors_S.tolist(), STRENGTHS, strict=True))
    say(
        f"projection into the text space fitted to {len(index_N):,} training images, every class weighing the same: "
        f"penalty {strength:.2g} of the features' variance, squared error of images left out {error:.3f}"
    )


def first_of_each(label_N: Any, most: int) -> Any:
    """Positions of the first images of each class, at most so many (but one at least), in order. (N,) int64."""
    import torch

    order_N = label_N.argsort(stable=True)
    sorted_N = label_N[order_N]
    place_N = torch.arange(len(label_N)) - torch.searchsorted(sorted_N, sorted_N)
    return order_N[place_N < max(1, most)].sort().values
