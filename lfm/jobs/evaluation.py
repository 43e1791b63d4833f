"""The jobs after training: scores and the registry."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfm.config.schema import RunConfig
from lfm.jobs.reports import page_of
from lfm.jobs.scoring import adjusted_row, score_models, untrained
from lfm.jobs.step import content, say_result, step
from lfm.progress import say
from lfm.revision import commit
from lfm.storage.artifact import MANIFEST, copy_to
from lfm.storage.handover import resolve
from lfm.storage.import_closure import source_hash
from lfm.storage.store import build_once

if TYPE_CHECKING:
    from lfm.tracking.step_logger import StepLogger

SCORING = ("lfm.jobs.scoring", "lfm.serving.predictor")
"""What scores, the champion too; the import closure is in the key of the scores."""
PARTS = ("test", "untrained", "champion", "adjusted")
"""Of metrics.json: each has scores, the last two where there are such."""
EXAMPLE_IMAGES = 2
SHOWN_CLASSES = 50


@step
def evaluate(
    config: dict[str, Any], dataset: str, text: str, backbone: str, model: str, out: str, page_out: str
) -> None:
    """Score the untrained model, the champion if there is one, and the trained model on the test images.

    Leaves metrics as JSON, what the champion and the trained model predicted for each image, and a page to look at.
    """
    from lfm.jobs.champion import data_tags, present_champion
    from lfm.report.tables import table
    from lfm.tracking import pipeline_run, registry

    run_config = RunConfig.model_validate(config)
    with pipeline_run.step_run("evaluate") as run:
        dataset, text, backbone = (resolve(path, "prepare") for path in (dataset, text, backbone))
        model = resolve(model, "train-stage2")
        data, provenance = data_tags(dataset), _provenance(run_config, dataset)
        about = {"provenance": provenance, "test_images": data[registry.TEST]}
        run.wait()  # the registry knows the champion, and MLflow the runs to compare with
        champion = present_champion(run_config.preset, dataset)
        inputs = {
            "champion": champion and champion.content,
            "dataset": content(dataset),
            "text": content(text),
            "model": content(model),
            "backbone": content(backbone),
            "shots": run_config.shots.model_dump(),
            "tower": run_config.model.tower,
            "precision": run_config.train.precision,
            "seed": run_config.seed,
            "method": run_config.method,
            "about": about,
            "code": source_hash(*SCORING),
        }
        folder, reused = build_once(
            "metrics",
            inputs,
            lambda aside: score_models(run_config, dataset, text, backbone, model, champion, about, aside),
        )
        say_result("evaluation", folder, reused)
        found = json.loads((folder / "metrics.json").read_text())
        say(table(methods_of(run_config, found)))
        if (before := found["untrained"]["all"]) > found["test"]["all"]:
            say(
                f"warning: the trained model answers {found['test']['all']:.1f} % of the test images, the one before "
                f"training {before:.1f} %; see the own-label masses above, or train with a lower alpha or learning rate"
            )
        if why := found.get("not_adjusted"):
            say(f"no adjusted row: {why}; data.val_per_class holds some out, to tune the strength of adjustment on")
        for prefix in PARTS:
            run.log({f"{prefix}/{k}": v for k, v in group_scores(found.get(prefix, {})).items()}, 0)
        if "adjusted" in found:
            run.log({"adjusted/strength": found["adjusted"]["strength"]}, 0)
        run.tags({f"lfm.{k}": v for k, v in provenance.items()} | data)
        copy_to(folder, Path(out))
        _write_page(run, run_config, folder, Path(out), Path(page_out))
    if pipeline_run.in_variant():  # its last step
        pipeline_run.end_well()


def _provenance(config: RunConfig, dataset: str) -> dict[str, Any]:
    """What a score must name: data, split, shot rule, weights, seed, commit."""
    from lfm.data.artifact import read_info

    return {
        "data": f"{config.data.name}, imbalance {read_info(Path(dataset))['imbalance']:.4g}",
        "split": "test",
        "shots": config.shots.rule,
        "weights": weights_tag(config),
        "seed": config.seed,
        "commit": commit(),
    }


def _write_page(run: "StepLogger", config: RunConfig, scores: Path, out: Path, page_out: Path) -> None:
    """Write the run's page into the folder of its scores and for KFP, and keep page, figures and scores in MLflow.

    The page is not kept in the store: it also shows other runs of the same data, and those come and go.

    Args:
        run: Run of the step.
        config: Configuration of the run.
        scores: Folder of the metrics artifact in the store.
        out: Folder that KFP shows, with a copy of the scores.
        page_out: HTML file that KFP shows.
    """
    from lfm.tracking import past_runs

    page, report = out / "report.html", page_of(scores, past_runs.read(run.parent, config))
    page.write_text(report.html, encoding="utf-8")
    page_out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(page, page_out)
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(out, place, ignore=shutil.ignore_patterns(MANIFEST), dirs_exist_ok=True)
        figures = Path(place) / "figures"
        figures.mkdir()
        for name, svg in report.figures().items():
            (figures / f"{name}.svg").write_text(svg, encoding="utf-8")
        run.folder(Path(place))
    columns, rows = report.tables["classes"]
    run.table(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True)), "classes.json")


def group_scores(scores: Mapping[str, Any]) -> dict[str, float]:
    """All, many, medium, few: those that there are."""
    return {name: scores[name] for name in ("all", "many", "medium", "few") if scores.get(name) is not None}


def methods_of(config: RunConfig, found: dict[str, Any]) -> dict[str, Any]:
    """The parts of metrics.json by the names that tables give them, the trained model last."""
    champion = {f"champion {found['champion']['version']}": found["champion"]} if "champion" in found else {}
    return {untrained(config): found["untrained"], **champion, config.method: found["test"]} | adjusted_row(
        config.method, found
    )


def shown_scores(folder: str) -> tuple[dict[str, float], list[str], list[list[int]]]:
    """What KFP shows of a metrics artifact: its scores, and a confusion matrix of at most `SHOWN_CLASSES` rows.

    More classes are shown by their shot group: how much of the tail is taken for the head.

    Returns:
        Name -> percent; names and counts of the matrix, rows being the truth.
    """
    found = json.loads((Path(folder) / "metrics.json").read_text())
    scores = group_scores(found["test"])
    for prefix in PARTS[1:]:
        scores |= {f"{prefix}_{name}": value for name, value in group_scores(found.get(prefix, {})).items()}
    names, groups = found["test"]["classes"], found["test"]["groups"]
    matrix = found["test"].get("confusion")
    if matrix is None:  # of very many classes there is none
        return scores, [], []
    if len(names) <= SHOWN_CLASSES:
        return scores, names, matrix
    rows = ("many", "medium", "few")
    flow = {row: dict.fromkeys(rows, 0) for row in rows}
    for row, counts in zip(groups, matrix, strict=True):
        for column, count in zip(groups, counts, strict=True):
            flow[row][column] += count
    return scores, list(rows), [list(row.values()) for row in flow.values()]


def weights_tag(config: RunConfig) -> str:
    """What the run began from, for every place that names a score."""
    if config.model.tower == "conv4":
        return f"conv4 from scratch; text {config.text.encoder}"
    text = "" if config.text.encoder == "backbone" else f"; text {config.text.encoder}"
    return f"{config.model.tower} {config.model.weights}{text}"


@step
def register(config: dict[str, Any], dataset: str, backbone: str, model: str) -> str:
    """Register the model in MLflow under the preset's name, unless it is there. Its `models:/NAME/VERSION`."""
    from lfm.jobs.champion import data_tags, input_of
    from lfm.tracking import other_runs, pipeline_run, registration, registry

    run_config = RunConfig.model_validate(config)
    name = run_config.preset
    with pipeline_run.step_run("register") as run:
        last = not other_runs.is_retraining()
        dataset, backbone = resolve(dataset, "prepare"), resolve(backbone, "prepare")
        model = resolve(model, "train-stage2")
        broken, known = "", registration.registered_version(run, name, content(model))
        if known and (why := registration.damage(known)):
            say(f"warning: {why}")
            broken, known = known, None
        uri = known or _register(run, run_config, dataset, backbone, model, broken)
        origin = data_tags(dataset) | {registry.INPUT: input_of(dataset), "lfm.method": run_config.method}
        registry.tag(name, uri.rpartition("/")[2], origin)
        run.tags({"lfm.model": uri})
        say(f"registered before, as {known}" if known else f"registered as {uri}")
    if last:  # else `decide` comes: until then the run goes on, for other retrainings and for a Terminate
        pipeline_run.end_well()
    return uri


def _register(run: "StepLogger", config: RunConfig, dataset: str, backbone: str, model: str, broken: str) -> str:
    """Make the artifact that is served, let it answer an example, and register it, perhaps for a broken version."""
    from lfm.jobs.packaging import example_of, of_base, served
    from lfm.serving.predictor import Predictor
    from lfm.serving.request import Limits, of_table, pixels_of
    from lfm.tracking.registration import register_model

    folder = served(config, dataset, backbone, model)
    predictor = Predictor(folder, backbone=of_base(folder, Path(backbone)))
    example = example_of(dataset, EXAMPLE_IMAGES)
    unit_ND = predictor.features(pixels_of(of_table(example, None), predictor, Limits()))
    answer = predictor.table(predictor.answers(unit_ND))
    return register_model(run, config.preset, content(model), folder, example, answer, config.text.encoder, broken)
