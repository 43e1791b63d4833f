"""A training process: builds the model, trains one stage, writes the model artifact.

`python -m lfm.training.worker TASK.json` is one of several processes; `lfm.jobs.launch` starts them on this machine,
`lfm.jobs.multinode` on others.
"""

import faulthandler
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lfm.backbones.assembly import Assembly
from lfm.backbones.device import pick_device
from lfm.backbones.model import load_weights
from lfm.data.artifact import read_info
from lfm.data.images import open_split
from lfm.data.table import open_table
from lfm.errors import ERROR_MARK, InputError
from lfm.method.label_shares import LabelShares
from lfm.storage.import_closure import source_hash
from lfm.storage.store import Mirror
from lfm.training.curves import Curves
from lfm.training.heartbeat import end_with
from lfm.training.loop import Stage
from lfm.training.model_artifact import model_info, new_model
from lfm.training.nonfinite import NonFiniteLossError
from lfm.training.task import METHOD, WorkerTask

SHOWN_IMAGES = 8


def train(task: WorkerTask, log: Callable[[Mapping[str, float], int], None]) -> None:
    """Train a stage as one of the task's processes; the first one writes the model artifact.

    Args:
        task: what to train.
        log: takes metrics and the epoch they belong to.

    Raises:
        InputError: the inputs do not fit each other, or the loss is not finite; names the images.
        PreemptedError: SIGTERM or Ctrl-C came; it can be resumed.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    assert started == task.processes, f"{started} processes were started, {task.processes} were asked for"
    config = task.config
    device = pick_device(config.train.device)
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    model = new_model(config, task.dataset, task.text, task.backbone)
    if task.previous:
        load_weights(model, task.previous / "model.safetensors")
    model.to(device)
    images, val = (
        open_split(task.dataset, split, device, config.train.resize, config.train.workers) for split in ("train", "val")
    )
    first = os.environ.get("RANK", "0") == "0"
    mirror = Mirror(task.remote, config.train.keep_checkpoints, [task.curves]) if task.remote and first else None
    try:
        stage = Stage(
            task.stage, config, model, images, val, task.checkpoints, log, task.alpha,
            mirror.send if mirror else None, read_info(task.dataset)["classes"],
        )  # fmt: skip
        stage.run()
    except NonFiniteLossError as error:
        raise NonFiniteLossError(f"{error}{_images_of(error.index_K2, task.dataset)}", error.index_K2) from error
    finally:
        if mirror:
            mirror.close()
    if first:
        kept = Assembly.of(config, len(model.text_CD)).state(model)
        weights = {name: value.to("cpu").contiguous() for name, value in kept.items()}
        save_file(weights, task.out / "model.safetensors")
        info = model_info(config, read_info(task.dataset), images, task.backbone, _prior(task, stage.shares))
        (task.out / "info.json").write_text(json.dumps(info, indent=1))


def _prior(task: WorkerTask, shares: LabelShares) -> list[float]:
    """The class shares that the logits stand for: those of the last stage that trained, all the same where none did."""
    if task.config.stage(task.stage).epochs:
        return shares.remaining(task.config.loss).tolist()
    if task.previous:
        before: list[float] = json.loads((task.previous / "info.json").read_text())["prior"]
        return before
    return [1 / len(shares.prior_C)] * len(shares.prior_C)


def _images_of(index_K2: Tensor | None, dataset: Path) -> str:
    """A sentence that names the images of some pairs, the first few of many; empty without pairs."""
    if index_K2 is None:
        return ""
    table, classes = open_table(dataset, "train"), read_info(dataset)["classes"]
    label_N = table.column("label")
    pairs = [
        " with ".join(dict.fromkeys(f"{classes[label_N[k]]}/{table.name(k)}" for k in pair))
        for pair in index_K2.tolist()
    ]
    more = f" and {len(pairs) - SHOWN_IMAGES} more" if len(pairs) > SHOWN_IMAGES else ""
    return f". Its images: {', '.join(pairs[:SHOWN_IMAGES])}{more}"


def main(path: str) -> None:
    """Train as one of several processes; an error for the user is one line on stderr and its exit code.

    Args:
        path: file that `WorkerTask.write` wrote.
    """
    faulthandler.enable()
    task = WorkerTask.read(Path(path))
    try:
        if task.code != source_hash(*METHOD):
            raise InputError(
                "this machine's image holds another version of LFM than the step's; set LFM_IMAGE, or the image of the "
                "training runtime, to the one that the step runs in"
            )
        if task.silence and os.environ.get("RANK", "0") == "0":  # the others end with it
            end_with(task.heartbeat, task.silence)
        train(task, Curves(task.curves, lambda values, epoch: None).log)  # the step sends what the file gets
    except InputError as error:
        print(f"{ERROR_MARK}{error}", file=sys.stderr, flush=True)  # noqa: T201
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main(sys.argv[1])
