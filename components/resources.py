"""Resources that each step requests on a cluster, its time limit and retries. A local run ignores them.

Cores and memory come from the configuration: the images of the data set, the weights of the tower, the processes and
the batch. `python -m benchmarks.memory` measures steps and compares them with what is requested here.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from lfm.backbones import imagenet, towers
from lfm.config.schema import ModelConfig, RunConfig

SIZES = Path(towers.__file__).with_name("tower_sizes.json")
"""Tower -> its weights, those of its whole model, and bytes of activations; written by `benchmarks.memory --towers`."""
PROGRAM = 2.0
"""GiB of a Python process with PyTorch, open_clip and MLflow, and of what it decodes at a time."""
CUDA = 4.0
"""GiB of a process that has a GPU, for CUDA's libraries and pinned memory; assumed, no GPU was at hand."""
SMALLEST = 3.0
"""GiB that a step requests at least: with that limit Fashion-MNIST-LT was prepared, trained and evaluated in pods."""
MARGIN = 1.25
"""What is estimated, times this, is requested: a request is also the limit at which the kernel ends a step."""
CHECKPOINT, TRAINING = 12, 16
"""Bytes of a weight in a checkpoint (itself and Adam's two moments), and where it trains (its gradient too)."""
WATCHING = 0.5, 2.0
"""Cores and GiB of a step that starts other machines and watches them, or only writes a few lines."""
ALIVE = 0.08
"""Share of a tower's activations that are in memory at a time where nothing is trained; seen: RN50 0.077."""
EVALUATED = 335
"""Images of 224 x 224 pixels that evaluation takes through a tower at a time (`lfm.evaluation.inference`)."""
AUTO_BATCH = 128
"""Batch that a request allows for where the batch size is searched; the search keeps within the memory there is."""
SHARED = 1.0
"""GiB of /dev/shm that each of several processes may use: NCCL's buffers; images are decoded by threads."""
DECODERS = 4
"""Cores of a training process that decodes JPEGs for a pre-trained tower."""
SMALL_TOWERS = ("conv4", imagenet.TOWER)
"""Towers of which nobody asks for a node with more cores."""
SMALL_IMAGES = ("fashion-mnist", "cifar10", "cifar100")
"""Data sets whose images are kept as pixels, so that nothing is decoded."""
GIB = 2**30


@dataclass(frozen=True)
class Step:
    """What a step is, whatever the configuration.

    Args:
        hours: Time limit of the step.
        gpu: Whether the step gets the GPUs of the run, and shared memory for the processes that load a batch.
        trains: Whether the step trains, and with several machines only starts and watches them.
        retries: Attempts after a failure or a lost node; each continues from what the last had finished.
    """

    hours: float
    gpu: bool = False
    trains: bool = False
    retries: int = 2


STEPS = {
    "plan-sweep": Step(1),
    "prepare": Step(24),
    "prepare-retraining": Step(24),
    "prepare-variant": Step(24),
    "train-stage1": Step(96, gpu=True, trains=True, retries=5),
    "train-stage2": Step(48, gpu=True, trains=True, retries=5),
    "evaluate": Step(6, gpu=True),
    "register": Step(1),
    "decide": Step(1),
    "compare": Step(1),
    "finish": Step(1, retries=0),
}


class Request(NamedTuple):
    """CPU cores and memory that a step requests, as Kubernetes writes them. The memory is its limit, too."""

    cpu: str
    memory: str


class Size(NamedTuple):
    """Size of a tower.

    Args:
        image: Weights of the image tower.
        whole: Weights of the model with its text tower.
        activations: Bytes that the image tower keeps for each image while it trains, in float32.
    """

    image: int
    whole: int
    activations: int


CONV4 = Size(300_000, 300_000, 4_000_000)
UNKNOWN = Size(1_100_000_000, 1_400_000_000, 700_000_000)
"""A tower whose size stands in no table, because its configuration is the user's: as large as ViT-H-14."""


def request(step: str, configs: Sequence[RunConfig], gpus: bool, shared_memory: float = 0.0) -> Request:
    """What a step requests: enough for each of the configurations that it may get.

    Args:
        step: Name of the component.
        configs: Configuration that the pipeline is compiled with; of a sweep all its configurations.
        gpus: Whether training has GPUs; without, weights and activations are in the pod's memory.
        shared_memory: Size of /dev/shm in training, in GiB; what is used of it counts as the pod's memory.
    """
    cores, gib = (max(both) for both in zip(*(_need(step, one, gpus, shared_memory) for one in configs), strict=True))
    return Request(f"{cores:g}" if cores >= 1 else f"{cores * 1000:g}m", f"{math.ceil(gib)}Gi")


def _need(step: str, config: RunConfig, gpus: bool, shared_memory: float) -> tuple[float, float]:
    """CPU cores and GiB."""
    if step in ("plan-sweep", "finish") or (STEPS[step].trains and config.train.nodes > 1):
        return WATCHING
    size = size_of(config.model)
    decodes = config.data.name not in SMALL_IMAGES and config.model.tower not in SMALL_TOWERS
    processes = max(1, config.train.processes)
    cores = (DECODERS if decodes else 1) * (processes if STEPS[step].trains else 1)
    gib = PROGRAM + 2 * 4 * size.image / GIB  # weights as they are read, and as they are used
    match step:
        case "prepare" | "prepare-retraining" | "prepare-variant":
            gib = PROGRAM + 3 * 4 * size.whole / GIB  # and as they are written
        case "train-stage1" | "train-stage2":
            gib += CUDA * gpus
            held = min(shared_memory, SHARED * processes) if processes > 1 else 0.0
            if not gpus:
                # Stage 2 leaves the tower as it is, and what it trains is small.
                share = 1.0 if step == "train-stage1" else ALIVE
                held += _batch(config, step) * share * size.activations / GIB
            if step == "train-stage1":
                held += (CHECKPOINT + TRAINING * (not gpus)) * size.image / GIB
            gib = gib * processes + held
        case "evaluate":
            gib += CUDA if gpus else EVALUATED * ALIVE * size.activations / GIB
        case _:
            cores = 1
    return cores, max(SMALLEST, gib * MARGIN)


def _batch(config: RunConfig, step: str) -> int:
    """Images of a training step whose activations are in memory at once, over all processes of a machine."""
    stage = config.stage(int(step[-1]))
    batch = AUTO_BATCH if stage.batch_size == "auto" else stage.batch_size
    return min(batch, stage.micro_batch * max(1, config.train.processes)) if stage.micro_batch else batch


def size_of(model: ModelConfig) -> Size:
    """The size of a tower, without building it."""
    if not towers.uses_open_clip(model):
        return CONV4
    size = _sizes().get(towers.name(model), UNKNOWN)
    if model.image_size:
        own = towers.preprocess(model.model_copy(update={"image_size": 0})).size
        size = size._replace(activations=round(size.activations * (model.image_size / own) ** 2))
    return size


@cache
def _sizes() -> dict[str, Size]:
    return {name: Size(*numbers) for name, numbers in json.loads(SIZES.read_text()).items()}
