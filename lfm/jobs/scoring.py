"""The jobs after training: scores and the registry."""

import json
import shutil
from pathlib import Path
from typing import Any

from lfm.artifact import MANIFEST, build_once, copy_to, source_hash
from lfm.config import RunConfig
from lfm.jobs.gathering import gather, keep_answers, problems
from lfm.jobs.reporting import page_of
from lfm.jobs.step import content, step, told
from lfm.jobs.training import new_model
from lfm.progress import say

# The source whose change makes kept scores stale.
SCORING = (
    "lfm.evaluate", "lfm.evidence", "lfm.jobs.gathering", "lfm.model", "lfm.train", "lfm.score", "lfm.data.images"
)  # fmt: skip
EXAMPLE_IMAGES = 2


@step
def evaluate(
    config: dict[str, Any], dataset: str, text: str, backbone: str, model: str, out: str, page_out: str
) -> None:
    """Score the untrained and the trained model on the test images: metrics as JSON, and a page to look at."""
    from lfm import runs, tracking
    from lfm.data import read_info
    from lfm.report import table

    run_config = RunConfig.model_validate(config)
    with tracking.step_run("evaluate") as run:
        provenance = {
            "data": f"{run_config.data.name}, imbalance {read_info(Path(dataset))['imbalance']:.4g}",
            "split": "test",
            "shots": run_config.shots.rule,
            "weights": weights_tag(run_config),
            "seed": run_config.seed,
            "commit": tracking.commit(),
        }
        inputs = {
            "dataset": content(dataset),
            "text": content(text),
            "model": content(model),
            "backbone": content(backbone),
            "shots": run_config.shots.model_dump(),
            "tower": run_config.model.tower,
            "precision": run_config.train.precision,
            "seed": run_config.seed,
            "method": run_config.method,
            "provenance": provenance,
            "code": source_hash(*SCORING),
        }
        folder, reused = build_once(
            "metrics", inputs, lambda aside: _score(run_config, dataset, text, backbone, model, provenance, aside)
        )
        told("evaluation", folder, reused)
        found = json.loads((folder / "metrics.json").read_text())
        say(table({untrained(run_config): found["untrained"], run_config.method: found["test"]}))
        for prefix in ("test", "untrained"):
            scores = {k: found[prefix][k] for k in ("all", "many", "medium", "few")}
            run.log({f"{prefix}/{k}": v for k, v in scores.items() if v is not None}, 0)
        run.tags({f"lfm.{k}": v for k, v in provenance.items()})
        for path in sorted(folder.iterdir()):
            if path.name != MANIFEST:
                run.file(path)
        copy_to(folder, Path(out))
        # Not kept in the store: the page also shows the runs beside this one, and those come and go.
        page = Path(out) / "report.html"
        page.write_text(page_of(folder, runs.read(run.parent, run_config)).html, encoding="utf-8")
        Path(page_out).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(page, page_out)
        run.file(page)


def weights_tag(config: RunConfig) -> str:
    """What the run began from, for every place that names a score."""
    if config.model.tower == "conv4":
        return f"conv4 from scratch; text {config.text.encoder}"
    text = "" if config.text.encoder == "backbone" else f"; text {config.text.encoder}"
    return f"{config.model.tower} {config.model.weights}{text}"


def untrained(config: RunConfig) -> str:
    """What the model before training is called in tables."""
    return "untrained" if config.model.weights == "random" else "zero-shot"


def _score(
    config: RunConfig, dataset: str, text: str, backbone: str, model: str, provenance: dict[str, Any], aside: Path
) -> None:
    from lfm.data import open_split, read_info
    from lfm.evidence import answer
    from lfm.model import load_weights
    from lfm.score import image_features, pick_device, score_split

    test = open_split(Path(dataset), "test", pick_device(config.train.device))
    train_label_N = open_split(Path(dataset), "train").label_N
    info = read_info(Path(dataset))
    names = {"classes": info["classes"], "counts": info["counts"]}
    temperature = json.loads((Path(model) / "info.json").read_text())["temperature"]
    net = new_model(config, dataset, text, backbone).to(test.device)
    found: dict[str, Any] = {"provenance": provenance}
    answers = {}
    for name in ("untrained", "trained"):
        if name == "trained":
            load_weights(net, Path(model) / "model.safetensors")
        feature_ND = image_features(net, test, config)
        score = score_split(net, test, train_label_N, config, feature_ND)
        found["test" if name == "trained" else name] = score | names
        answers[name] = answer(net, feature_ND, config, temperature)
    (aside / "metrics.json").write_text(json.dumps(found))
    keep_answers(aside, test.label_N.cpu().numpy(), **answers)
    evidence = gather(config, Path(dataset), Path(text), test, answers)
    evidence |= {"before": untrained(config), "mend": problems(config, Path(dataset), Path(text))}
    (aside / "evidence.json").write_text(json.dumps(evidence, separators=(",", ":"), allow_nan=False))


@step
def register(config: dict[str, Any], dataset: str, model: str) -> str:
    """Register the model in MLflow under the preset's name, unless it is there. Its `models:/NAME/VERSION`."""
    import torch

    from lfm import tracking
    from lfm.data import open_split
    from lfm.serve import Predictor

    run_config = RunConfig.model_validate(config)
    pixels = open_split(Path(dataset), "test").fetch(torch.arange(EXAMPLE_IMAGES))
    example = (pixels[:, 0] if pixels.shape[1] == 1 else pixels.permute(0, 2, 3, 1)).numpy().copy()
    with tracking.step_run("register") as run:
        if known := tracking.registered_version(run, run_config.preset, content(model)):
            run.tags({"lfm.model": known})
            say(f"registered before, as {known}")
            return known
        predictor = Predictor(Path(model))
        any_size = not predictor.info["image_shape"]
        uri = tracking.register_model(
            run, run_config.preset, content(model), Path(model), example, predictor.predict(example), any_size
        )
        run.tags({"lfm.model": uri})
    say(f"registered as {uri}")
    return uri
