"""The training job: one stage, reused if it was trained before."""

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lfm.config.schema import RunConfig
from lfm.errors import InputError
from lfm.jobs.launch import launch, processes_per_node
from lfm.jobs.preview import preview
from lfm.jobs.step import content, say_result, step
from lfm.progress import say
from lfm.storage import s3
from lfm.storage.artifact import NOTES, content_key, home
from lfm.storage.handover import hand_over, resolve
from lfm.storage.import_closure import source_hash
from lfm.storage.store import build_once, fetch_checkpoints, own_inputs, shared
from lfm.training.curves import Curves
from lfm.training.task import METHOD, WorkerTask

# The fields of `train` that weights depend on, if only by rounding.
WEIGHED = {"device", "nodes", "processes", "precision", "crop", "flip", "resize", "compile"}


@step
def train_stage(
    stage: int, config: dict[str, Any], dataset: str, text: str, backbone: str, before: str, out: str
) -> None:
    """Train stage 1 (`before` is empty) or stage 2 (`before` is stage 1's model) and keep the model.

    A killed step resumes from its last checkpoint: the checkpoints lie in a folder named by the same inputs.
    """
    from lfm.tracking import pipeline_run

    run_config = RunConfig.model_validate(config)
    with pipeline_run.step_run(f"stage {stage}") as run:
        dataset, text, backbone = (resolve(path, "prepare") for path in (dataset, text, backbone))
        before = resolve(before, "train-stage1") if before else ""
        alpha = preview(run_config, stage, dataset, text)
        inputs = stage_inputs(run_config, stage, alpha, dataset, text, backbone, before)
        run.params({f"stage{stage}.alpha_used": alpha}, on_parent=True)
        work = home() / "work" / content_key(own_inputs(inputs))
        remote = shared("work", work.name)

        def build(aside: Path) -> None:
            if remote:
                fetch_checkpoints(remote, work / "checkpoints", [work / "curves.jsonl"])
            note_inputs(work, own_inputs(inputs))
            curves = Curves(work / "curves.jsonl", run.log)
            curves.replay()
            per_node = processes_per_node(run_config.train)
            task = WorkerTask(
                config=run_config, stage=stage, alpha=alpha, dataset=Path(dataset), text=Path(text),
                backbone=Path(backbone), previous=Path(before) if before else None, work=work, out=aside,
                processes=run_config.train.nodes * per_node, remote=remote, code=source_hash(*METHOD),
            )  # fmt: skip
            launch(task, curves)
            curves.save(aside / NOTES / "curves.jsonl")

        folder, reused = build_once("model", inputs, build)
        if reused:
            Curves(folder / NOTES / "curves.jsonl", run.log).replay()
        shutil.rmtree(work, ignore_errors=True)
        if remote:
            with contextlib.suppress(InputError):  # left-overs there cost room, not correctness
                s3.delete(remote)
        say_result(f"stage {stage}", folder, reused)
    hand_over(folder, out)


def stage_inputs(
    config: RunConfig, stage: int, alpha: float, dataset: str, text: str, backbone: str, before: str
) -> dict[str, Any]:
    """All that a stage's weights depend on, every value as it is used: `alpha: auto` as the number it came to."""
    train = config.train.model_dump(include=WEIGHED)
    return {
        "stage": stage,
        "values": config.stage(stage).model_dump() | {"alpha": alpha},
        "method": {name: getattr(config, name).model_dump() for name in ("model", "mixup", "loss")},
        "train": train,
        "seed": config.seed,
        "dataset": content(dataset),
        "text": content(text),
        "backbone": content(backbone),
        "before": content(before) if before else None,
        "code": source_hash(*METHOD),
    }


def note_inputs(work: Path, inputs: Mapping[str, Any]) -> None:
    """Write the inputs of a stage to its work folder; say so if a stage with other inputs was left unfinished."""
    path, inputs = work / "inputs.json", json.loads(json.dumps(inputs))
    if path.is_file():
        return
    for other in sorted(work.parent.glob("*/inputs.json")) if work.parent.is_dir() else []:
        then = json.loads(other.read_text())
        if then["stage"] == inputs["stage"] and then["dataset"] == inputs["dataset"]:
            now, before = _flat(inputs), _flat(then)
            changed = [f"{k} {before.get(k)} -> {now.get(k)}" for k in now | before if before.get(k) != now.get(k)]
            say(f"an unfinished stage {inputs['stage']} differs in {', '.join(changed)}; this one starts over")
    work.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(inputs))
    aside.replace(path)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= _flat(inner, f"{prefix}{name}.") if isinstance(inner, Mapping) else {f"{prefix}{name}": inner}
    return flat
