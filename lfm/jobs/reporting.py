"""Reports: what is kept of an evaluation, and the pages that are made from it and MLflow, at any time and without a GPU."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfm.config import RunConfig
from lfm.jobs.audit import to_mend
from lfm.jobs.training import inspect, read_text

if TYPE_CHECKING:
    from lfm.evidence import Answer
    from lfm.report.page import Report
    from lfm.report.values import Other, Run, Sweep
    from lfm.runs import Past

SHOWN_DIFFERENCES = 3
SWEEPS = {"alpha": ("stage1.alpha", "stage2.alpha"), "tau": ("mixup.tau",)}
SAME = ("data.name", "data.profile", "data.imbalance", "data.max_per_class", "data.test_per_class", "shots.many", "shots.few")
USED = {"stage1.alpha_used", "stage2.alpha_used"}


def keep_answers(folder: Path, label_N: Any, untrained: "Answer", trained: "Answer") -> None:
    """Each test image's class, answers and confidence, in the test set's order, as .npy files."""
    import numpy as np

    np.save(folder / "labels.npy", label_N.astype(np.int32))
    np.save(folder / "predictions.npy", trained.predicted_N)
    np.save(folder / "confidence.npy", trained.confidence_N)
    np.save(folder / "untrained.npy", untrained.predicted_N)


def keep_evidence(
    folder: Path, config: RunConfig, dataset: Path, text: Path, images: Any, answers: Mapping[str, "Answer"], before: str
) -> None:
    """All that a page needs of model and images beside the answers: evidence.json.

    Args:
        folder: of the metrics artifact.
        config: of the run.
        dataset: artifact.
        text: artifact.
        images: the test split.
        answers: of the model `untrained` and `trained`.
        before: what the untrained model is called.
    """
    import torch

    from lfm import evidence
    from lfm.data import read_info
    from lfm.data.audit import audit
    from lfm.evaluate import shot_group

    info, text_CD = read_info(dataset), read_text(text)
    label_N = images.label_N.cpu().numpy()
    count_C = torch.tensor(info["counts"])
    groups = shot_group(count_C, config.shots)
    few_C = torch.tensor([name == "few" for name in groups])
    pairs = evidence.choose_pairs(info["classes"], count_C, text_CD, few_C)
    names = [k for pair in pairs for k in pair]
    shown = evidence.embedded_images(label_N, names)
    trained = answers["trained"]
    stages = {str(s): _stage(inspect(config, s, dataset, text)) for s in (1, 2) if config.stage(s).epochs} or {
        "1": _stage(inspect(config, 1, dataset, text))
    }
    found = {
        "title": f"{config.preset}: {config.method}, seed {config.seed}",
        "method": config.method,
        "before": before,
        "trained": _told(config, info, images, int(count_C.sum())),
        "groups": groups,
        "tau": config.mixup.tau,
        "threshold": config.train.own_label_threshold,
        "shifts": config.mixup.name == "lfm",
        "pairing": _pairing(config),
        "stages": stages,
        "pairs": pairs,
        "margins": {name: evidence.margins(of, label_N, text_CD, pairs) for name, of in answers.items()},
        "embedding": {
            "names": names,
            "class": [names.index(k) for k in label_N[shown].tolist()],
            **{name: evidence.tsne(of.unit_ND[torch.from_numpy(shown)].cpu().numpy()) for name, of in answers.items()},
        },
        "affinity": evidence.affinity(text_CD, config.mixup.tau, evidence.shown_classes(len(groups), pairs)),
        "similarity": _similarity(text_CD, label_N, answers),
        "confused": _confused(text_CD, config.mixup.tau, label_N, trained),
        "worst": _worst(label_N, trained, len(groups), images),
        "mend": to_mend(
            audit(dataset),
            _inspected(stages, info) if config.mixup.name == "lfm" else None,
            config.train.own_label_threshold,
        ),
    }
    (folder / "evidence.json").write_text(json.dumps(found, separators=(",", ":"), allow_nan=False))


def _stage(found: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("gamma", "gamma_effective", "own_label_mass", "seen", "alpha", "collapsing")
    short = {k: [float(f"{v:.6g}") for v in found[k]] for k in ("own_label_mass", "seen")}
    return {k: found[k] for k in kept} | short


def _inspected(stages: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    return {"classes": info["classes"], "own_label_mass": stages[min(stages)]["own_label_mass"]}


def _told(config: RunConfig, info: Mapping[str, Any], images: Any, count: int) -> str:
    tower = f"{config.model.tower} ({config.model.weights})"
    epochs = f"{config.stage1.epochs} + {config.stage2.epochs} epochs"
    return (
        f"{config.method} trained {tower} for {epochs} on {count:,} images of {len(info['classes']):,} classes from "
        f"{config.data.name}, the largest {max(info['counts']):,} and the smallest {min(info['counts']):,} images; "
        f"scored on {len(images):,} test images."
    )


def _pairing(config: RunConfig) -> str:
    if config.mixup.name != "lfm":
        return f"This run ({config.method}) draws no partner by text: p(Y) is what local sampling at tau {config.mixup.tau:g} would give."
    return f"Partners are drawn {'by text' if config.mixup.partner == 'text' else 'uniformly'} at tau {config.mixup.tau:g}."


def _similarity(text_CD: Any, label_N: Any, answers: Mapping[str, "Answer"]) -> dict[str, Any]:
    from lfm.evidence import similarity_and_confusion
    from lfm.report.stats import spearman, twentieths

    found: dict[str, Any] = {"curve": {}, "rho": {}}
    for name, of in answers.items():
        cosine, share, classes = similarity_and_confusion(text_CD, label_N, of.predicted_N)
        found |= {"classes": classes, "pairs": len(cosine)}
        found["curve"][name] = twentieths(cosine, 100 * share)
        found["rho"][name] = spearman(cosine, share)
    return found


def _confused(text_CD: Any, tau: float, label_N: Any, trained: "Answer") -> list[dict[str, Any]]:
    import torch

    from lfm.evidence import CONFUSED, confused
    from lfm.mixup import local_sampling_rows

    found = []
    for truth, answer, images in confused(label_N, trained.predicted_N, len(text_CD))[:CONFUSED].tolist():
        partner = local_sampling_rows(text_CD, torch.tensor([truth]), tau)[0, answer]
        cosine = float(text_CD[truth] @ text_CD[answer])
        found.append({"truth": truth, "answer": answer, "images": images, "cosine": cosine, "partner": float(partner)})
    return found


def _worst(label_N: Any, trained: "Answer", classes: int, images: Any) -> list[dict[str, Any]]:
    from lfm.evidence import thumbnail, worst

    found = worst(label_N, trained, classes)
    for of in found:
        for image in of["images"]:
            image["uri"] = thumbnail(images, image["row"])
    return found


def page_of(folder: Path, run_id: str) -> "Report":
    """The page of a run from its metrics artifact and MLflow.

    Args:
        folder: the artifact.
        run_id: of the pipeline run.
    """
    from lfm import runs
    from lfm.report.page import run_page
    from lfm.report.published import for_data

    with tempfile.TemporaryDirectory() as place:
        among = runs.evaluated()
        past = runs.find(run_id, among)
        beside = [run for run in among if run.experiment == past.experiment]
        run = _read(folder, past, beside, Path(place))
    data = {k: past.params[f"data.{k}"] for k in ("name", "profile", "imbalance")}
    return run_page(run, for_data(data), f"lfm report {past.run_id[:12]}")


def report_run(selector: str) -> tuple["Report", "Past"]:
    """The page of a run, made again from MLflow.

    Args:
        selector: id, beginning of an id, name, or `latest`.

    Raises:
        InputError: no such run, or it is of a version that kept less.
    """
    from lfm import runs
    from lfm.report.values import FILES

    past = runs.find(selector, runs.evaluated())
    with tempfile.TemporaryDirectory() as place:
        return page_of(runs.download(past, FILES, Path(place)), past.run_id), past


def compare_runs(selectors: Sequence[str]) -> tuple["Report", Sequence[Any]]:
    """The page of several runs, held against the first, and the rows of its differences.

    Raises:
        InputError: no such run, fewer than two, or runs that were not scored on the same data.
    """
    from lfm import runs
    from lfm.config import InputError
    from lfm.report.compare import compare_page

    among = runs.evaluated()
    chosen = [runs.find(selector, among) for selector in selectors]
    if len({run.run_id for run in chosen}) < 2:
        raise InputError("--compare needs two or more different runs, as in lfm report --compare RUN RUN")
    for run in chosen[1:]:
        if other := sorted(f for f in run.differs(chosen[0]) if f in SAME):
            raise InputError(f"run {run.run_id[:12]} was not scored on the same data: {', '.join(other)} differ")
    with tempfile.TemporaryDirectory() as place:
        found = [_compared(run, Path(place) / run.run_id) for run in chosen]
    whole = next((run for run in found if not hasattr(run, "name")), None)
    if whole is None:
        raise InputError("none of these runs kept its answers; they are of an older version: run one of them again")
    about = {k: whole.provenance[k] for k in ("data", "split", "shots")}
    report = compare_page(found, whole.total_G, about)
    return report, report.tables["differences"][1]


def _compared(past: "Past", place: Path) -> Any:
    from lfm import runs
    from lfm.config import InputError
    from lfm.report.values import FILES, Other, read_run

    try:
        return read_run(runs.download(past, FILES, place), run_id=past.run_id)
    except InputError:  # of an older version: its scores alone
        return Other(past.method, past.scores(), past.run_id, past.seed, past.method)


def report_paper() -> "Report":
    """The paper's tables, filled from all runs in MLflow."""
    from lfm import runs
    from lfm.report.paper import Ours, paper_page, tasks

    among = runs.evaluated()
    ours = {}
    for task in tasks():
        found = runs.matching(task.preset, dict(task.overrides), among, task.untrained)
        if found:
            ours[task.command] = Ours.of([run.scores("untrained" if task.untrained else "test") for run in found])
    return paper_page(ours)


def _read(folder: Path, past: "Past", beside: Sequence["Past"], place: Path) -> "Run":
    from lfm import runs
    from lfm.config import InputError
    from lfm.report.values import FILES, read_run

    baseline = None
    found = next((run for run in beside if _is_baseline(run, past)), None)
    if found:
        try:
            baseline = read_run(runs.download(found, FILES, place), run_id=found.run_id)
        except InputError:  # of an older version; its scores are in the table all the same
            baseline = None
    return read_run(
        folder,
        run_id=past.run_id,
        curves=runs.curves(past.run_id),
        others=others(past, beside),
        baseline=baseline,
        sweeps=sweeps(past, beside),
    )


def _is_baseline(run: "Past", past: "Past") -> bool:
    """Plain cross-entropy on the same data, weights and seed."""
    sections = ("data.", "model.", "text.", "shots.", "seed")
    return (
        run.finished
        and run.method == "ce" != past.method
        and not any(field.startswith(sections) for field in run.differs(past))
    )


def others(past: "Past", beside: Sequence["Past"]) -> list["Other"]:
    """The finished runs on the same data, the newest of each configuration, those of the same seed first.

    Args:
        past: the run of the page.
        beside: of the experiment, newest first.
    """
    from lfm.report.values import Other

    kept: dict[str, Other] = {}
    for run in beside:
        fields = run.differs(past)
        if not run.finished or run.run_id == past.run_id or any(f.startswith(("data.", "shots.")) for f in fields):
            continue
        name = run.method + _differences(run, fields - USED - {"seed", "mixup.name", "loss.name"})
        key = json.dumps({k: v for k, v in run.science().items() if k not in USED}, sort_keys=True)
        if fields - USED:
            kept.setdefault(key, Other(name, run.scores(), run.run_id, run.seed, run.method))
    return sorted(kept.values(), key=lambda other: other.seed != past.seed)


def _differences(run: "Past", fields: set[str]) -> str:
    told = [f"{field}={run.params[field]}" for field in sorted(fields)]
    more = f", {len(told) - SHOWN_DIFFERENCES} more" if len(told) > SHOWN_DIFFERENCES else ""
    return f" · {', '.join(told[:SHOWN_DIFFERENCES])}{more}" if told else ""


def sweeps(past: "Past", beside: Sequence["Past"]) -> list["Sweep"]:
    """Alpha and tau, each from the runs that differ from this one in nothing else."""
    from lfm.report.values import Sweep

    found = []
    if not past.method.startswith("lfm"):
        return found
    for field, names in SWEEPS.items():
        points = {}
        for run in beside:
            same = not run.differs(past) - USED - set(names)
            if same and (run.finished or run.run_id == past.run_id):
                value = run.params.get("stage1.alpha_used", "") if field == "alpha" else run.params["mixup.tau"]
                points.setdefault(float(value or run.params["stage1.alpha"]), run.scores())
        if len(points) > 1:
            found.append(Sweep(field, sorted(points.items())))
    return found
