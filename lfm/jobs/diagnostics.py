"""What is kept of an evaluation, so that reports need neither the model nor the images."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfm.config.schema import RunConfig
from lfm.jobs.data_report import problems_of
from lfm.jobs.preview import inspect
from lfm.training.model_artifact import read_text

if TYPE_CHECKING:
    from lfm.evaluation.diagnostics import Answer


def keep_answers(folder: Path, label_N: Any, untrained: "Answer", trained: "Answer") -> None:
    """Each test image's class, answers and confidence, in the test set's order, as .npy files."""
    import numpy as np

    np.save(folder / "labels.npy", label_N.astype(np.int32))
    np.save(folder / "predictions.npy", trained.predicted_N)
    np.save(folder / "confidence.npy", trained.confidence_N)
    np.save(folder / "untrained.npy", untrained.predicted_N)


def gather(
    config: RunConfig, dataset: Path, text: Path, images: Any, answers: Mapping[str, "Answer"]
) -> dict[str, Any]:
    """All that a page needs of model and images besides the answers, JSON-like (evidence.json).

    Args:
        config: of the run.
        dataset: artifact.
        text: artifact.
        images: the test split.
        answers: of the model `untrained` and `trained`.
    """
    import torch

    from lfm.data.artifact import read_info
    from lfm.evaluation import diagnostics
    from lfm.evaluation.metrics import shot_group
    from lfm.training.batches import barred_partners

    info, text_CD = read_info(dataset), read_text(text)
    barred = barred_partners(config.mixup, info["classes"], text_CD)
    label_N = images.label_N.cpu().numpy()
    count_C = torch.tensor(info["counts"])
    groups = shot_group(count_C, config.shots)
    few_C = torch.tensor([name == "few" for name in groups])
    pairs = diagnostics.choose_pairs(info["classes"], count_C, text_CD, few_C)
    names = [k for pair in pairs for k in pair]
    shown = diagnostics.embedded_images(label_N, names)
    stages = [s for s in (1, 2) if config.stage(s).epochs] or [1]
    return {
        "title": f"{config.preset}: {config.method}, seed {config.seed}",
        "method": config.method,
        "trained": _told(config, info, len(images)),
        "groups": groups,
        "tau": config.mixup.tau,
        "threshold": config.train.own_label_threshold,
        "shifts": config.mixup.name == "lfm",
        "pairing": _pairing(config),
        "stages": {str(s): _stage(inspect(config, s, dataset, text)) for s in stages},
        "pairs": pairs,
        "margins": {name: diagnostics.margins(of, label_N, pairs) for name, of in answers.items()},
        "embedding": {
            "names": names,
            "class": [names.index(k) for k in label_N[shown].tolist()],
            **{
                name: diagnostics.tsne(of.unit_ND[torch.from_numpy(shown)].cpu().numpy())
                for name, of in answers.items()
            },
        },
        "affinity": diagnostics.affinity(
            text_CD, config.mixup.tau, diagnostics.shown_classes(len(groups), pairs), barred
        ),
        "similarity": _similarity(text_CD, label_N, answers),
        "confused": _confused(text_CD, config.mixup.tau, barred, label_N, answers["trained"]),
        "worst": _worst(label_N, answers["trained"], len(groups), images),
    }


def problems(config: RunConfig, dataset: Path, text: Path) -> list[dict[str, Any]]:
    """Problems of the data, the worst first, as the data report has them."""
    from lfm.data.audit import audit

    inspected = inspect(config, 1, dataset, text) if config.mixup.name == "lfm" else None
    return problems_of(audit(dataset), inspected, config.train.own_label_threshold)


def _stage(found: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("gamma", "gamma_effective", "own_label_mass", "seen", "alpha")
    short = {k: [float(f"{v:.6g}") for v in found[k]] for k in ("own_label_mass", "seen")}
    return {k: found[k] for k in kept} | short


def _told(config: RunConfig, info: Mapping[str, Any], test_images: int) -> str:
    tower = f"{config.model.tower} ({config.model.weights})"
    epochs = f"{config.stage1.epochs} + {config.stage2.epochs} epochs"
    return (
        f"{config.method} trained {tower} for {epochs} on {sum(info['counts']):,} images of "
        f"{len(info['classes']):,} classes from {config.data.name}, {max(info['counts']):,} images of the largest and "
        f"{min(info['counts']):,} of the smallest; scored on {test_images:,} test images."
    )


def _pairing(config: RunConfig) -> str:
    tau = f"{config.mixup.tau:g}"
    if config.mixup.name != "lfm":
        return f"{config.method} draws no partner by text: p(Y) is what local sampling at tau {tau} would give."
    return f"Partners are drawn {'by text' if config.mixup.partner == 'text' else 'uniformly'}, tau {tau}."


def _similarity(text_CD: Any, label_N: Any, answers: Mapping[str, "Answer"]) -> dict[str, Any]:
    from lfm.evaluation.diagnostics import similarity_and_confusion
    from lfm.report.stats import spearman, twentieths

    found: dict[str, Any] = {"curve": {}, "rho": {}}
    for name, of in answers.items():
        cosine, share, classes = similarity_and_confusion(text_CD, label_N, of.predicted_N)
        found |= {"classes": classes, "pairs": len(cosine)}
        found["curve"][name] = twentieths(cosine, 100 * share)
        found["rho"][name] = spearman(cosine, share)
    return found


def _confused(text_CD: Any, tau: float, barred: Any, label_N: Any, trained: "Answer") -> list[dict[str, Any]]:
    import torch

    from lfm.evaluation.diagnostics import CONFUSED, confused
    from lfm.method.mixup import local_sampling_rows

    found = []
    for truth, answer, images in confused(label_N, trained.predicted_N, len(text_CD))[:CONFUSED].tolist():
        partner = local_sampling_rows(text_CD, torch.tensor([truth]), tau, barred)[0, answer]
        cosine = float(text_CD[truth] @ text_CD[answer])
        found.append({"truth": truth, "answer": answer, "images": images, "cosine": cosine, "partner": float(partner)})
    return found


def _worst(label_N: Any, trained: "Answer", classes: int, images: Any) -> list[dict[str, Any]]:
    from lfm.evaluation.diagnostics import thumbnail, worst

    found = worst(label_N, trained, classes)
    for of in found:
        for image in of["images"]:
            image["uri"] = thumbnail(images, image["row"])
    return found
