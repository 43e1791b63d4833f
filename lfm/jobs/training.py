"""The training job: one stage, in one process or many."""

import contextlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lfm.config.schema import RunConfig
from lfm.errors import InputError
from lfm.jobs.preview import preview, read_text
from lfm.jobs.step import content, say_result, step
from lfm.progress import say
from lfm.storage import s3
from lfm.storage.artifact import NOTES, content_key, copy_to, home
from lfm.storage.import_closure import source_hash
from lfm.storage.store import Mirror, build_once, fetch_checkpoints, shared
from lfm.training.curves import Curves, following

SHOWN_IMAGES = 8

# The fields of `train` that weights depend on, if only by rounding.
WEIGHED = {"device", "nodes", "processes", "precision", "flip", "resize", "compile", "shard"}

METHOD = ("lfm.training.loop", "lfm.backbones.openclip")
"""What trains; the import closure is in the key of a model."""


@step
def train_stage(
    stage: int, config: dict[str, Any], dataset: str, text: str, backbone: str, before: str, out: str
) -> None:
    """Train stage 1 (`before` is empty) or stage 2 (`before` is stage 1's model) and keep the model.

    A killed step goes on from its last checkpoint: checkpoints lie in a folder named by the same inputs.
    """
    from lfm.tracking import pipeline_run

    run_config = RunConfig.model_validate(config)
    with pipeline_run.step_run(f"stage {stage}") as run:
        alpha = preview(run_config, stage, dataset, text)
        inputs = stage_inputs(run_config, stage, alpha, dataset, text, backbone, before)
        run.params({f"stage{stage}.alpha_used": alpha}, on_parent=True)
        work = home() / "work" / content_key(inputs)
        remote = shared("work", work.name)

        def build(aside: Path) -> None:
            if remote:
                fetch_checkpoints(remote, work / "checkpoints", [work / "curves.jsonl"])
            begin(work, inputs)
            curves = Curves(work / "curves.jsonl", run.log)
            curves.replay()
            arguments: dict[str, Any] = {
                "config": run_config,
                "stage": stage,
                "dataset": dataset,
                "text": text,
                "backbone": backbone,
                "before": before,
                "out": aside,
                "checkpoints": work / "checkpoints",
                "alpha": alpha,
                "remote": remote,
            }
            count, nodes = process_count(run_config), run_config.train.nodes
            if nodes > 1:
                from lfm.jobs.multinode import train_on_nodes  # which starts this file's `train` elsewhere

                train_on_nodes(nodes, count, curves, arguments)
            elif count == 1:
                train(log=curves.log, **arguments)
            else:
                train_together(count, curves, arguments)
            curves.save(aside / NOTES / "curves.jsonl")

        folder, reused = build_once("model", inputs, build)
        if reused:
            Curves(folder / NOTES / "curves.jsonl", run.log).replay()
        shutil.rmtree(work, ignore_errors=True)
        if remote:
            with contextlib.suppress(InputError):  # left-overs there cost room, not correctness
                s3.delete(remote)
        say_result(f"stage {stage}", folder, reused)
    copy_to(folder, Path(out))


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


def new_model(config: RunConfig, dataset: str | Path, text: str | Path, backbone: str | Path) -> Any:
    """The model before any training: pre-trained towers, or conv4 from the seed.

    Raises:
        InputError: image and text embeddings differ in length.
    """
    from lfm.backbones import towers
    from lfm.backbones.model import LFM, conv4
    from lfm.backbones.openclip import image_tower
    from lfm.data.artifact import read_info

    text_CD = read_text(text)
    if not towers.uses_open_clip(config.model):
        return LFM(conv4(read_info(Path(dataset))["channels"], text_CD.shape[1], config.seed), text_CD)
    dim = json.loads((Path(backbone) / "config.json").read_text())["embed_dim"]
    if dim != text_CD.shape[1]:
        raise InputError(
            f"{config.model.tower} embeds images in {dim} dimensions, text.encoder {config.text.encoder} text in "
            f"{text_CD.shape[1]}; set text.encoder=backbone"
        )
    return LFM(image_tower(Path(backbone)), text_CD)


def train(
    config: RunConfig,
    stage: int,
    dataset: str,
    text: str,
    backbone: str,
    before: str,
    out: Path,
    checkpoints: Path,
    log: Callable[[Any, int], None],
    alpha: float,
    remote: str | None = None,
    processes: int = 1,
) -> None:
    """Train one stage and write the model artifact: weights, and all that a predictor needs to know.

    This process is one of `processes`, all told; a launcher that started another number is a mistake of ours.
    """
    import torch
    from safetensors.torch import save_file

    from lfm.backbones.model import load_weights
    from lfm.data.artifact import read_info
    from lfm.data.images import open_split
    from lfm.evaluation.inference import pick_device
    from lfm.training.loop import NonFiniteLossError, Stage

    started = int(os.environ.get("WORLD_SIZE", "1"))
    assert started == processes, f"{started} processes were started, {processes} were asked for"
    device = pick_device(config.train.device)
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    model = new_model(config, dataset, text, backbone)
    if before:
        load_weights(model, Path(before) / "model.safetensors")
    model.to(device)
    images, val = (
        open_split(Path(dataset), split, device, config.train.resize, config.train.workers)
        for split in ("train", "val")
    )
    first = os.environ.get("RANK", "0") == "0"
    mirror = None
    if remote and first:
        mirror = Mirror(remote, config.train.keep_checkpoints, [checkpoints.with_name("curves.jsonl")])
    stage_run = Stage(stage, config, model, images, val, checkpoints, log, alpha, mirror.send if mirror else None)
    try:
        stage_run.run()
    except NonFiniteLossError as error:
        raise NonFiniteLossError(f"{error}{_images_of(error, Path(dataset))}", error.index_K2) from error
    finally:
        if mirror:
            mirror.close()
    state = {k: v.to("cpu").contiguous() for k, v in stage_run.state().items()}
    if not first:
        return
    save_file(state, out / "model.safetensors")
    (out / "info.json").write_text(json.dumps(model_info(config, read_info(Path(dataset)), images, backbone), indent=1))


def _images_of(error: Any, dataset: Path) -> str:
    """The images of the pairs whose loss is no number, in words."""
    from lfm.data.artifact import read_info
    from lfm.data.table import open_table

    if error.index_K2 is None:
        return ""
    table, classes = open_table(dataset, "train"), read_info(dataset)["classes"]
    label_N = table.column("label")
    pairs = [
        " with ".join(dict.fromkeys(f"{classes[label_N[k]]}/{table.name(k)}" for k in pair))
        for pair in error.index_K2.tolist()
    ]
    more = f" and {len(pairs) - SHOWN_IMAGES} more" if len(pairs) > SHOWN_IMAGES else ""
    return f". Its images: {', '.join(pairs[:SHOWN_IMAGES])}{more}"


def begin(work: Path, inputs: Mapping[str, Any]) -> None:
    """Keep what a stage is trained from beside its checkpoints, and say so if one of other values was left behind."""
    path = work / "inputs.json"
    if path.is_file():
        return
    for other in sorted(work.parent.glob("*/inputs.json")) if work.parent.is_dir() else []:
        then = json.loads(other.read_text())
        if then["stage"] == inputs["stage"] and then["dataset"] == inputs["dataset"]:
            now, before = _flat(inputs), _flat(then)
            changed = [f"{k} {before.get(k)} -> {now.get(k)}" for k in now | before if before.get(k) != now.get(k)]
            say(f"an unfinished stage {inputs['stage']} differs in {', '.join(changed)}; this one begins anew")
    work.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(inputs))
    aside.replace(path)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= _flat(inner, f"{prefix}{name}.") if isinstance(inner, Mapping) else {f"{prefix}{name}": inner}
    return flat


def process_count(config: RunConfig) -> int:
    """How many processes train, on each machine: as asked, or one for every GPU."""
    if config.train.processes:
        return config.train.processes
    import torch

    return max(1, torch.cuda.device_count()) if config.train.device in ("auto", "cuda") else 1


def train_together(count: int, curves: Curves, told: dict[str, Any]) -> None:
    """Train in several processes, which torchrun's API starts and watches; points of the curves are sent as they come.

    Raises:
        SystemExit: a process ended with an error that the user can mend, which it has told.
        torch.distributed.elastic.multiprocessing.errors.ChildFailedError: a process failed otherwise.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    path = curves.path.with_name("ranks.json")
    write_ranks(path, {**told, "curves": curves.path, "processes": count})
    launch = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0", max_restarts=0,
    )  # fmt: skip
    try:
        with following(curves):
            elastic_launch(launch, sys.executable)("-u", "-m", "lfm.jobs.train_worker", str(path))
    except ChildFailedError as error:
        told_why = {failure.exitcode for failure in error.failures.values()} & {InputError.exit_code, 143}
        if told_why:
            raise SystemExit(told_why.pop()) from None
        raise


def write_ranks(path: Path, told: Mapping[str, Any]) -> None:
    """Write what `lfm.jobs.train_worker` needs: arguments of `train`, where the curves go, and the version to be."""
    content = {k: str(v) if isinstance(v, Path) else v for k, v in told.items()}
    content |= {"config": told["config"].model_dump(), "code": source_hash(*METHOD)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def model_info(config: RunConfig, info: Mapping[str, Any], images: Any, backbone: str) -> dict[str, Any]:
    """What a predictor must know beside the weights."""
    from lfm.backbones.towers import uses_open_clip

    architecture = None
    if uses_open_clip(config.model):
        architecture = json.loads((Path(backbone) / "config.json").read_text())
    scale = {"ldam": 1 / config.loss.ldam_scale, "mms": config.loss.mms_temperature}
    return {
        "tower": config.model.tower,
        "weights": config.model.weights,
        "architecture": architecture,
        "channels": info["channels"],
        "image_shape": list(images.shape) if not images.to.size else None,
        "preprocess": info["preprocess"],
        "classes": info["classes"],
        "counts": info["counts"],
        "temperature": scale.get(config.loss.name, config.loss.temperature),
    }
