"""The scores of a run: what the untrained model, the champion and the trained one say to the test images."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfm.config.schema import RunConfig
from lfm.jobs.diagnostics import gather, keep_answers, problems
from lfm.report.tables import adjusted_name
from lfm.training.model_artifact import new_model

if TYPE_CHECKING:
    from torch import Tensor

    from lfm.backbones.model import LFM
    from lfm.jobs.champion import Champion

PREDICTIONS, CHAMPION_PREDICTIONS = "predictions.npy", "champion_predictions.npy"


def untrained(config: RunConfig) -> str:
    """What the model before training is called in tables."""
    if not config.model.aligned:
        return "ridge"
    return "untrained" if config.model.weights == "random" else "zero-shot"


def adjusted_row(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """The adjusted scores of a model by the name that tables give them; empty where there are none.

    Args:
        name: of the model.
        found: metrics.json.
    """
    scores = found.get("adjusted")
    return {adjusted_name(name, scores["strength"]): scores} if scores else {}


def score_models(
    config: RunConfig, dataset: str, text: str, backbone: str, model: str, champion: "Champion | None",
    about: dict[str, Any], aside: Path,
) -> None:  # fmt: skip
    """Score the models on the test images and keep metrics, predictions and what reports need.

    Args:
        config: of the run.
        dataset: folder of the data set artifact.
        text: folder of the class embeddings.
        backbone: folder of the pre-trained towers.
        model: folder of the trained model.
        champion: the registry's champion, if it can be scored on these images.
        about: goes into metrics.json as it is: `provenance`, and `test_images`, which names them.
        aside: gets metrics.json, evidence.json and an array of predictions a model.
    """
    import numpy as np
    import torch

    from lfm.backbones.device import pick_device
    from lfm.backbones.model import load_weights
    from lfm.data.artifact import read_info
    from lfm.data.images import open_split
    from lfm.evaluation.diagnostics import answer
    from lfm.evaluation.inference import image_features, score
    from lfm.evaluation.metrics import shot_group

    test = open_split(Path(dataset), "test", pick_device(config.train.device))
    train_label_N = open_split(Path(dataset), "train").label_N
    info = read_info(Path(dataset))
    groups = shot_group(torch.tensor(info["counts"]), config.shots)
    names = {"classes": info["classes"], "counts": info["counts"], "groups": groups}
    trained = json.loads((Path(model) / "info.json").read_text())
    found = dict(about)

    def counted(predicted_N: Any) -> dict[str, Any]:
        return score(predicted_N, test, train_label_N, config, len(groups)) | names

    net = new_model(config, dataset, text, backbone).to(test.device)
    answers = {}
    for name in ("untrained", "trained"):
        if name == "trained":
            load_weights(net, Path(model) / "model.safetensors")
        feature_ND = image_features(net, test, config)
        answers[name] = answer(net, feature_ND, config, trained["temperature"])
        predicted_N = torch.from_numpy(answers[name].predicted_N).long().to(test.device)
        found["test" if name == "trained" else name] = counted(predicted_N)
    found |= _adjusted(net, feature_ND, dataset, trained, config, counted)
    if champion and (predicted_N := champion.predict(test, config)) is not None:
        found["champion"] = counted(predicted_N) | {"version": champion.version}
        np.save(aside / CHAMPION_PREDICTIONS, predicted_N.cpu().numpy().astype(np.int32))
    (aside / "metrics.json").write_text(json.dumps(found))
    keep_answers(aside, test.label_N.cpu().numpy(), **answers)
    evidence = gather(config, Path(dataset), Path(text), test, answers)
    evidence |= {"before": untrained(config), "problems": problems(config, Path(dataset), Path(text))}
    (aside / "evidence.json").write_text(json.dumps(evidence, separators=(",", ":"), allow_nan=False))


def _adjusted(
    net: "LFM",
    feature_ND: "Tensor",
    dataset: str,
    trained: Mapping[str, Any],
    config: RunConfig,
    counted: Callable[[Any], dict[str, Any]],
) -> dict[str, Any]:
    """The trained model's scores with adjusted logits as `adjusted`, or why there are none as `not_adjusted`.

    Args:
        net: as trained.
        feature_ND: of the test images, which go through the tower once.
        dataset: whose validation images say how strongly to adjust.
        trained: what the model artifact says of itself.
        config: of the run.
        counted: predictions -> scores.
    """
    import torch

    from lfm.data.images import open_split
    from lfm.data.validation_images import MIN_IMAGES, fresh
    from lfm.evaluation import adjustment
    from lfm.evaluation.inference import image_features

    chosen = torch.from_numpy(fresh(Path(dataset)))
    if len(chosen) < MIN_IMAGES:
        return {"not_adjusted": f"{len(chosen)} validation images are in no other split, fewer than {MIN_IMAGES}"}
    val = open_split(Path(dataset), "val", feature_ND.device)
    chosen = chosen.to(feature_ND.device)
    log_prior_C = adjustment.direction(torch.tensor(trained["prior"]), torch.tensor(trained["counts"]))
    tuned = adjustment.tune(
        net, image_features(net, val, config)[chosen], val.label_N.to(feature_ND.device)[chosen], log_prior_C,
        trained["temperature"], config,
    )  # fmt: skip
    about = {"strength": tuned.strength, "validation_images": tuned.images}
    about |= {"validation_before": tuned.before, "validation_after": tuned.after}
    return {"adjusted": counted(adjustment.predict_adjusted(net, feature_ND, tuned, config)) | about}
