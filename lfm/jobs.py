"""One function per pipeline step: inputs and outputs are folders, everything else is the configuration.

Each step names its result by a hash of all it depends on (`lfm.artifact.build_once`) and takes it from the store
when it is there, so a second run repeats nothing that has not changed.
"""

import contextlib
import functools
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from lfm.artifact import NOTES, build_once, content_key, copy_to, home, read_manifest, source_hash
from lfm.config import DataConfig, InputError, RunConfig, TextConfig, unknown
from lfm.presets import load
from lfm.progress import say

P = ParamSpec("P")
R = TypeVar("R")

ERROR_MARK = "error: "
SHOWN_CLASSES = 20

# The source whose change makes a kept result stale.
METHOD = ("lfm.mixup", "lfm.losses", "lfm.model", "lfm.train", "lfm.data")
SCORING = ("lfm.evaluate", "lfm.report", "lfm.model", "lfm.train", "lfm.data")


def step(job: Callable[P, R]) -> Callable[P, R]:
    """End with one line and exit code 2 where the user can mend it; the traceback stays for our own mistakes."""

    @functools.wraps(job)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return job(*args, **kwargs)
        except InputError as error:
            if os.environ.get("LFM_DEBUG"):
                raise
            print(f"{ERROR_MARK}{error}", file=sys.stderr, flush=True)  # noqa: T201
            raise SystemExit(2) from None

    return wrapped


def _content(folder: str | Path) -> str:
    return str(read_manifest(Path(folder))["content"])


def _told(what: str, key_folder: Path, reused: bool) -> None:
    say(f"{what}: {'unchanged, reused' if reused else 'done'} ({key_folder.name[:12]})")


@step
def configure(preset: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Resolve and check the configuration, and begin the pipeline run in MLflow. The configuration as a dict."""
    from lfm import tracking

    config = load(preset, overrides)
    tracking.begin_pipeline_run(config.preset, f"{config.method}, seed {config.seed}")
    with tracking.step_run("configure") as run:
        run.config(config)
        run.tags({"lfm.method": config.method, "lfm.data": config.data.name})
    return config.model_dump()


def dataset_for(config: DataConfig, seed: int) -> tuple[Path, bool]:
    """The data set artifact in the store, built if need be; and whether it was there.

    Raises:
        InputError: unknown data set, or its files are missing or wrong.
    """
    from lfm.data import DATASETS, write

    if config.name not in DATASETS:
        raise unknown("data set", config.name, DATASETS)
    subset = config.model_dump(exclude={"folder"})  # where the files lie does not change what they hold
    inputs = {"data": subset, "seed": seed, "code": source_hash("lfm.data")}
    return build_once("dataset", inputs, lambda aside: write(aside, DATASETS[config.name](config.folder), config, seed))


def embeddings_for(config: TextConfig, dataset: Path) -> tuple[Path, bool]:
    """The class embeddings in the store, computed if need be; and whether they were there."""
    from safetensors.torch import save_file

    from lfm.data import read_info
    from lfm.text import MINILM_SHA256, embed

    names = read_info(dataset)["classes"]

    def build(aside: Path) -> None:
        save_file({"text_CD": embed(names, config)}, aside / "text.safetensors")
        (aside / "info.json").write_text(json.dumps({"classes": names, "prompt": config.prompt}))

    # No code in this key: the embeddings are those of a published encoder, named by its weights.
    return build_once("text", {"names": names, "text": config.model_dump(), "weights": MINILM_SHA256}, build)


@step
def prepare_data(data: dict[str, Any], seed: int, out: str) -> None:
    """Fetch, check, subset: the data set artifact."""
    from lfm import tracking

    with tracking.step_run("prepare data") as run:
        folder, reused = dataset_for(DataConfig.model_validate(data), int(seed))
        run.tags({"lfm.dataset": _content(folder)})
        _told("data", folder, reused)
        copy_to(folder, Path(out))


@step
def embed_text(text: dict[str, Any], dataset: str, out: str) -> None:
    """Class names -> frozen class embeddings."""
    from lfm import tracking

    with tracking.step_run("embed text"):
        folder, reused = embeddings_for(TextConfig.model_validate(text), Path(dataset))
        _told("text embeddings", folder, reused)
        copy_to(folder, Path(out))


@step
def train_stage(stage: int, config: dict[str, Any], dataset: str, text: str, before: str, out: str) -> None:
    """Train stage 1 (`before` is empty) or stage 2 (`before` is stage 1's model) and keep the model.

    A killed step goes on from its last checkpoint: checkpoints lie in a folder named by the same inputs.
    """
    from lfm import tracking

    run_config = RunConfig.model_validate(config)
    inputs = stage_inputs(run_config, stage, dataset, text, before)
    with tracking.step_run(f"stage {stage}") as run:
        alpha = preview(run_config, stage, dataset, text)
        run.params({f"stage{stage}.alpha_used": alpha}, on_parent=True)
        work = home() / "work" / content_key(inputs)
        curves = Curves(work / "curves.jsonl", run.log)

        def build(aside: Path) -> None:
            curves.replay()
            _train(run_config, stage, dataset, text, before, aside, work / "checkpoints", curves.log, alpha)
            curves.save(aside / NOTES / "curves.jsonl")

        folder, reused = build_once("model", inputs, build)
        if reused:
            Curves(folder / NOTES / "curves.jsonl", run.log).replay()
        shutil.rmtree(work, ignore_errors=True)
        _told(f"stage {stage}", folder, reused)
    copy_to(folder, Path(out))


def stage_inputs(config: RunConfig, stage: int, dataset: str, text: str, before: str) -> dict[str, Any]:
    """All that a stage's weights depend on."""
    train = config.train.model_dump(include={"device", "precision", "flip"})
    return {
        "stage": stage,
        "values": config.stage(stage).model_dump(),
        "method": {name: getattr(config, name).model_dump() for name in ("model", "mixup", "loss")},
        "threshold": config.train.own_label_threshold if config.stage(stage).alpha == "auto" else None,
        "train": train,
        "seed": config.seed,
        "dataset": _content(dataset),
        "text": _content(text),
        "before": _content(before) if before else None,
        "code": source_hash(*METHOD),
    }


class Curves:
    """The curves of a stage, kept beside its checkpoints so that a resumed run has them whole.

    Args:
        path: a JSON line an epoch.
        send: where each point goes, once.
    """

    def __init__(self, path: Path, send: Callable[[Any, int], None]) -> None:
        self.path, self.send = path, send
        lines = path.read_text().splitlines() if path.exists() else []
        self.points: dict[int, dict[str, float]] = {}
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):  # the line that a killed process was writing
                epoch, values = json.loads(line)
                self.points[epoch] = values

    def replay(self) -> None:
        """Send what is there already."""
        for epoch, values in self.points.items():
            self.send(values, epoch)

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        """Keep and send a point; an epoch trained again after a resume gives the same one and is not sent twice."""
        if epoch in self.points:
            return
        self.points[epoch] = dict(values)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps([epoch, values]) + "\n")
        self.send(values, epoch)

    def save(self, path: Path) -> None:
        """Write all points."""
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(point) + "\n" for point in self.points.items()))


def _read_text(folder: str) -> Any:
    from safetensors.torch import load_file

    return load_file(Path(folder) / "text.safetensors")["text_CD"]


def _new_model(config: RunConfig, dataset: str, text: str) -> Any:
    from lfm.data import open_split
    from lfm.model import LFM

    return LFM(config.model.tower, open_split(Path(dataset), "train").pixels.shape[1], _read_text(text), config.seed)


def preview(config: RunConfig, stage: int, dataset: str, text: str) -> float:
    """Show what the label shift will do to each class before any training; the alpha to train with."""
    if config.mixup.name != "lfm":
        return 0.0
    found = inspect(config, stage, Path(dataset), Path(text))
    alpha, own = found["alpha"], found["own_label_mass"]
    threshold = config.train.own_label_threshold
    if config.stage(stage).alpha == "auto":
        say(f"stage {stage}: alpha = {alpha} keeps every class's own-label mass at {threshold} or more")
    say(
        f"stage {stage}: gamma {found['gamma']:.0f}, gamma' {found['gamma_effective']:.1f} after local sampling; "
        f"own-label mass at alpha {alpha}: {min(own):.2f} to {max(own):.2f}"
    )
    if stage == 1:  # the picture is the same for stage 2 but for its alpha
        say(describe(found))
    if collapsing := found["collapsing"]:
        say(f"warning: {collapsing}")
    return float(alpha)


def inspect(config: RunConfig, stage: int, dataset: Path, text: Path) -> dict[str, Any]:
    """What the method will do to each class, exact and without sampling (`lfm.analysis`).

    Returns:
        `classes`, `counts`, `gamma`, `gamma_effective`, `own_label_mass`, `label_mass`, `neighbours` (for each class
        the three nearest in text, with cosines), `prior`, `seen` (p(Y)), `alpha` as used, and `collapsing`: a warning
        that names the classes whose own-label mass is under the threshold, or nothing.
    """
    import torch

    from lfm import analysis
    from lfm.data import read_info

    info, text_CD = read_info(dataset), _read_text(str(text))
    count_C = torch.tensor(info["counts"])
    pairs = analysis.Pairs(count_C, text_CD, config.mixup.tau, config.mixup.partner == "uniform")
    threshold, alpha = config.train.own_label_threshold, config.stage(stage).alpha
    alpha = analysis.auto_alpha(pairs, threshold) if alpha == "auto" else alpha
    own_C, seen_C = analysis.own_label_mass(pairs, alpha), analysis.seen_probability(pairs)
    names = info["classes"]
    near = zip(*(t.tolist() for t in analysis.neighbours(text_CD)), strict=True)
    under = [name for name, own in zip(names, own_C.tolist(), strict=True) if own < threshold]
    return {
        "classes": names,
        "counts": info["counts"],
        "gamma": analysis.imbalance(count_C),
        "gamma_effective": analysis.imbalance(seen_C),
        "own_label_mass": own_C.tolist(),
        "label_mass": analysis.label_mass(pairs, alpha, config.mixup.beta).tolist(),
        "neighbours": [[{"class": names[k], "cosine": cosine} for k, cosine in zip(*row, strict=True)] for row in near],
        "prior": pairs.prior_C.tolist(),
        "seen": seen_C.tolist(),
        "alpha": alpha,
        "collapsing": under
        and f"own-label mass under {threshold} for {', '.join(under)}: these classes are about to collapse. "
        f"Lower stage{stage}.alpha (auto finds the largest safe one) or raise mixup.tau",
    }


def describe(found: Mapping[str, Any]) -> str:
    """The result of `inspect` as a table with a bar a class; the first and last classes of many."""
    from lfm.report import histogram

    columns = {
        "images": found["counts"],
        "p(Y)": [f"{v:.3f}" for v in found["seen"]],
        "own": [f"{v:.2f}" for v in found["own_label_mass"]],
        "M": [f"{v:.3f}" for v in found["label_mass"]],
    }
    return histogram(found["classes"], columns, found["seen"], SHOWN_CLASSES)


def _train(
    config: RunConfig,
    stage: int,
    dataset: str,
    text: str,
    before: str,
    out: Path,
    checkpoints: Path,
    log: Callable[[Any, int], None],
    alpha: float,
) -> None:
    import torch
    from safetensors.torch import save_file

    from lfm.data import open_split, read_info
    from lfm.model import load_weights
    from lfm.train import Stage, pick_device

    device = pick_device(config.train.device)
    model = _new_model(config, dataset, text)
    if before:
        load_weights(model, Path(before) / "model.safetensors")
    model.to(device)
    train, val = (open_split(Path(dataset), split, device) for split in ("train", "val"))
    Stage(stage, config, model, train, val, checkpoints, log, alpha).run()
    state = {k: v.to("cpu", memory_format=torch.contiguous_format) for k, v in model.state_dict().items()}
    save_file({k: v.contiguous() for k, v in state.items()}, out / "model.safetensors")
    info = read_info(Path(dataset))
    shape = list(train.pixels.shape[2:]) + ([3] if train.pixels.shape[1] == 3 else [])
    (out / "info.json").write_text(
        json.dumps(
            {
                "tower": config.model.tower,
                "channels": train.pixels.shape[1],
                "image_shape": shape,
                "classes": info["classes"],
                "counts": info["counts"],
                "mean": info["mean"],
                "std": info["std"],
                "temperature": {"ldam": 1 / config.loss.ldam_scale, "mms": config.loss.mms_temperature}.get(
                    config.loss.name, config.loss.temperature
                ),
            },
            indent=1,
        )
    )


@step
def evaluate(config: dict[str, Any], dataset: str, text: str, model: str, out: str, page_out: str) -> None:
    """Score the untrained and the trained model on the test images: metrics as JSON, and a page to look at."""
    from lfm import tracking
    from lfm.report import table

    run_config = RunConfig.model_validate(config)
    with tracking.step_run("evaluate") as run:
        provenance = {
            "data": f"{run_config.data.name}, imbalance {run_config.data.imbalance:g}",
            "split": "test",
            "shots": run_config.shots.rule,
            "weights": f"{run_config.model.tower} from scratch; text {run_config.text.encoder}",
            "seed": run_config.seed,
            "commit": tracking.commit(),
        }
        inputs = {
            "dataset": _content(dataset),
            "text": _content(text),
            "model": _content(model),
            "shots": run_config.shots.model_dump(),
            "tower": run_config.model.tower,
            "precision": run_config.train.precision,
            "seed": run_config.seed,
            "method": run_config.method,
            "provenance": provenance,
            "code": source_hash(*SCORING),
        }
        folder, reused = build_once(
            "metrics", inputs, lambda aside: _score(run_config, dataset, text, model, provenance, aside)
        )
        _told("evaluation", folder, reused)
        found = json.loads((folder / "metrics.json").read_text())
        say(table({"untrained": found["untrained"], run_config.method: found["test"]}))
        for prefix in ("test", "untrained"):
            scores = {k: found[prefix][k] for k in ("all", "many", "medium", "few")}
            run.log({f"{prefix}/{k}": v for k, v in scores.items() if v is not None}, 0)
        run.tags({f"lfm.{k}": v for k, v in provenance.items()})
        copy_to(folder, Path(out))
        Path(page_out).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "report.html", page_out)
        run.file(folder / "report.html")
        run.file(folder / "metrics.json")


def _score(config: RunConfig, dataset: str, text: str, model: str, provenance: dict[str, Any], aside: Path) -> None:
    from lfm.data import open_split, read_info
    from lfm.model import load_weights
    from lfm.report import page
    from lfm.train import pick_device, score_split

    device = pick_device(config.train.device)
    test = open_split(Path(dataset), "test", device)
    train_label_N = open_split(Path(dataset), "train").label_N
    info = read_info(Path(dataset))
    names = {"classes": info["classes"], "counts": info["counts"]}
    net = _new_model(config, dataset, text).to(device)
    untrained = score_split(net, test, train_label_N, config)
    load_weights(net, Path(model) / "model.safetensors")
    trained = score_split(net, test, train_label_N, config)
    content = {"provenance": provenance, "test": trained | names, "untrained": untrained | names}
    (aside / "metrics.json").write_text(json.dumps(content))
    methods = {"untrained": content["untrained"], config.method: content["test"]}
    (aside / "report.html").write_text(page(f"{config.preset}: {config.method}", methods, provenance))


@step
def register(config: dict[str, Any], dataset: str, model: str) -> str:
    """Register the model in MLflow under the preset's name. Its `models:/NAME/VERSION`."""
    import numpy as np

    from lfm import tracking
    from lfm.serve import Predictor

    run_config = RunConfig.model_validate(config)
    example = np.array(np.load(Path(dataset) / "test_images.npy", mmap_mode="r", allow_pickle=False)[:2])
    with tracking.step_run("register") as run:
        output = Predictor(Path(model)).predict(example)
        uri = tracking.register_model(run, run_config.preset, Path(model), example, output)
        run.tags({"lfm.model": uri})
    say(f"registered as {uri}")
    return uri
