"""`batch_size: auto`: the batch size is found by trying."""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lfm.backbones.model import LFM
from lfm.errors import InputError
from lfm.method.losses import LabelLoss, soft
from lfm.training.processes import Processes

SMALLEST_BATCH = 16
LEAST_GAIN = 1.05
"""A batch twice as large must raise the images per second by this factor."""


def search_batch_size(
    model: LFM, trained: list[nn.Parameter], loss: LabelLoss, images_shape: tuple[int, int, int], most: int,
    micro_batch: int, dtype: torch.dtype, processes: Processes,
) -> int:  # fmt: skip
    """The batch size to train with; the model comes out as it went in.

    Steps are timed on batches of zeros, while memory as large as Adam's two moments is taken.

    Args:
        model: laid out in memory as it will train.
        trained: its trained weights.
        loss: the loss of the stage.
        images_shape: (channels, height, width) of the tower's input.
        most: number of training images.
        micro_batch: most images that a process holds at a time; 0: all of its rows.
        dtype: of the input and of autocast.
        processes: the processes that train together; the slowest one's time counts.
    """
    device = processes.device
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    moments = [torch.empty_like(parameter) for parameter in trained for _ in range(2)]

    def step(x: Tensor, label_B2: Tensor, weight_B2: Tensor) -> None:
        size = micro_batch or len(x)
        for begin in range(0, len(x), size):
            piece = slice(begin, begin + size)
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                logits_BC = model(x[piece])
            soft(loss, logits_BC, label_B2[piece], weight_B2[piece]).mean().backward()
        model.zero_grad()

    def seconds(size: int) -> float | None:
        x = torch.zeros(-(-size // processes.count), *images_shape, device=device, dtype=dtype)
        label_B2 = torch.zeros(len(x), 2, dtype=torch.long, device=device)
        weight_B2 = torch.full((len(x), 2), 0.5, device=device)
        taken = step_seconds(lambda: step(x, label_B2, weight_B2), device)
        slowest = processes.reduce(torch.tensor(math.inf if taken is None else taken, device=device), "max")
        return float(slowest) if slowest.isfinite() else None

    size = largest_useful_batch(seconds, most)
    model.zero_grad()
    del moments
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    return size


def largest_useful_batch(seconds: Callable[[int], float | None], most: int) -> int:
    """The batch size, doubled while a step fits into memory and the images per second rise.

    Args:
        seconds: gives the duration of a step with a batch of this size, or None where memory runs out.
        most: number of training images.

    Raises:
        InputError: the smallest batch does not fit.
    """
    size, best = min(SMALLEST_BATCH, most), 0.0
    while (taken := seconds(size)) is not None and size / taken >= LEAST_GAIN * best:
        best = size / taken
        if 2 * size > most:
            return size
        size *= 2
    if not best:
        raise InputError(f"a batch of {size} images does not fit into memory; set micro_batch, or train.recompute=true")
    return size // 2


def step_seconds(step: Callable[[], object], device: torch.device) -> float | None:
    """Duration of the second of two steps, since the first one warms up; None where memory runs out."""
    try:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began
    except torch.OutOfMemoryError:
        return None
