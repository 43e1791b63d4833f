"""The artifact that is registered: the model, and what else a server needs to answer well."""

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lfm.config.schema import RunConfig
from lfm.jobs.step import content
from lfm.progress import say
from lfm.storage.artifact import link, read_manifest
from lfm.storage.import_closure import source_hash
from lfm.storage.store import build_once

CALIBRATION_IMAGES, IMAGES_PER_CLASS = 2000, 10
"""So many images are fitted on at most, or so many a class if that is more: one number needs no more, shares do."""


def served(config: RunConfig, dataset: str, backbone: str, model: str) -> Path:
    """The artifact for serving, from the store or made: weights, shot groups, calibrated temperature, text tower.

    Args:
        config: of the run.
        dataset: whose validation images calibrate.
        backbone: whose text tower embeds new class names.
        model: the finished model.
    """
    inputs = {
        "model": content(model),
        "dataset": content(dataset),
        "backbone": content(backbone),
        "shots": config.shots.model_dump(),
        "text": _text(config),
        "precision": config.train.precision,
        "device": config.train.device,
        "code": source_hash(__name__),
    }
    return build_once("served", inputs, lambda aside: _make(config, dataset, backbone, model, aside))[0]


def _text(config: RunConfig) -> dict[str, Any]:
    """Descriptions are of the classes of training: a new class has none."""
    return config.text.model_dump(mode="json", exclude={"descriptions"})


def _make(config: RunConfig, dataset: str, backbone: str, model: str, aside: Path) -> None:
    import torch

    from lfm.backbones.openclip import keep_text_half
    from lfm.evaluation.metrics import shot_group
    from lfm.serving import self_check
    from lfm.serving.predictor import SERVED, TEXT_HALF, Predictor

    for name in read_manifest(Path(model))["files"]:
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        link(Path(model) / name, aside / name)
    info = json.loads((aside / "info.json").read_text())
    if config.text.encoder == "backbone" and not info["base"]:  # else the text tower is the base's
        (aside / TEXT_HALF).mkdir()
        keep_text_half(Path(backbone), aside / TEXT_HALF)
    about = {
        "groups": shot_group(torch.tensor(info["counts"]), config.shots),
        **_calibrated(config, Path(dataset), Path(backbone), Path(model), info),
        "text": _text(config),
        "check": self_check.kept(
            Predictor(Path(model), precision="fp32", backbone=of_base(Path(model), Path(backbone))).of_picture()
        ),
    }
    (aside / SERVED).write_text(json.dumps(about, indent=1))


def of_base(model: Path, backbone: Path) -> Path | None:
    """The towers, for a model that needs them besides its own weights."""
    return backbone if json.loads((model / "info.json").read_text())["base"] else None


def _calibrated(
    config: RunConfig, dataset: Path, backbone: Path, model: Path, info: Mapping[str, Any]
) -> dict[str, Any]:
    """What is fitted on validation images: `calibration` and, for other class shares, `shift`; None where too few."""
    import torch

    from lfm.backbones.device import pick_device
    from lfm.data.images import open_split
    from lfm.data.validation_images import MIN_IMAGES, fresh
    from lfm.evaluation.calibration import fit_shift, fit_temperature
    from lfm.serving.predictor import BATCH, Predictor

    found = torch.from_numpy(fresh(dataset))
    if len(found) < MIN_IMAGES:
        say(
            f"probabilities are not calibrated: {len(found)} validation images are in no other split, fewer than "
            f"{MIN_IMAGES}; data.val_per_class holds some out"
        )
        return {"calibration": None, "shift": None}
    device = pick_device(config.train.device)
    val = open_split(dataset, "val", device)
    most = max(CALIBRATION_IMAGES, IMAGES_PER_CLASS * len(info["prior"]))
    chosen = found[:: -(-len(found) // most)]
    predictor = Predictor(model, str(device), config.train.precision, of_base(model, backbone))
    unit_ND = torch.cat([predictor.encode(val.exact(some)) for some in chosen.split(BATCH)]).cpu()
    cosine_NC, label_N, temperature = unit_ND @ predictor.unit_CD.T, val.label_N.cpu()[chosen], info["temperature"]
    calibration = fit_temperature(cosine_NC, label_N, temperature, "val")
    shift = fit_shift(cosine_NC, label_N, temperature, "val", torch.tensor(info["prior"], dtype=torch.float64))
    say(
        f"probabilities calibrated on {calibration.images} validation images: temperature {temperature:.4g} -> "
        f"{calibration.temperature:.4g}, negative log-likelihood {calibration.before:.3f} -> {calibration.after:.3f}"
    )
    return {"calibration": asdict(calibration), "shift": asdict(shift)}


def example_of(dataset: str, images: int) -> Any:
    """The first test images as a client sends them: a column of PNG files in base64."""
    import pandas as pd
    import torch
    from PIL import Image

    from lfm.data.images import open_split

    cells = []
    for pixels in open_split(Path(dataset), "test").fetch(torch.arange(images)):
        grey = pixels.shape[0] == 1
        out = io.BytesIO()
        Image.fromarray(pixels[0].numpy() if grey else pixels.permute(1, 2, 0).contiguous().numpy()).save(out, "PNG")
        cells.append(base64.b64encode(out.getvalue()).decode())
    return pd.DataFrame({"image": cells})
