"""Making a model fit: its blocks shared by processes or computed again, and a batch size found by trying."""

import functools
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lfm.errors import InputError

BLOCK_WEIGHTS = 10_000
SMALLEST_BATCH = 16
WORTH = 1.05
"""A batch twice as large must raise the images a second by this factor."""


def blocks(tower: nn.Module) -> Iterator[nn.Module]:
    """The repeated parts of a tower: the largest members of its lists that hold weights worth the trouble."""
    for child in tower.children():
        if isinstance(tower, nn.ModuleList | nn.Sequential) and _weights(child) >= BLOCK_WEIGHTS:
            yield child
        else:
            yield from blocks(child)


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def recompute_activations(tower: nn.Module) -> None:
    """Keep only what goes into each block; the backward pass computes the rest again (Chen et al. 2016).

    Raises:
        InputError: the tower has batch norm, whose statistics would count each batch twice, or no blocks.
    """
    found = list(blocks(tower))
    normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in tower.modules())
    if normed or not found:
        why = "has batch norm, which would see each batch twice" if normed else "has no blocks"
        raise InputError(f"train.recompute: this tower {why}; set it to false, and stage1.micro_batch for less memory")
    for block in found:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def share(tower: nn.Module, device: torch.device, processes: int) -> None:
    """FSDP: split each block's weights, gradients and optimizer state over the processes, in place."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard  # takes most of a second to import

    mesh = init_device_mesh(device.type, (processes,))
    for block in blocks(tower):
        fully_shard(block, mesh=mesh)
    fully_shard(tower, mesh=mesh)


def cast_once(tower: nn.Module) -> dict[str, Tensor]:
    """Give a tower that stands still the bf16 weights that autocast would make of them anew in every step, in place.

    Autocast keeps what it cast for weights that train, and only for them. The products are the same to the last bit.

    Returns:
        Name -> the weights as they were, float32: what is saved, and what they get back in the end.
    """
    before: dict[str, Tensor] = {}
    for place, module in tower.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention):
            for name, parameter in module.named_parameters(recurse=False):
                before[f"{place}.{name}"] = parameter.data
                parameter.data = parameter.data.bfloat16()
    return before


def find_batch_size(seconds_of: Callable[[int], float | None], most: int) -> int:
    """The batch size to train with: doubled while a step fits and images a second rise.

    Args:
        seconds_of: batch size -> seconds of a step, or nothing where memory runs out.
        most: images there are.

    Raises:
        InputError: the smallest does not fit.
    """
    size, best = min(SMALLEST_BATCH, most), 0.0
    while (taken := seconds_of(size)) is not None and size / taken >= WORTH * best:
        best = size / taken
        if 2 * size > most:
            return size
        size *= 2
    if not best:
        raise InputError(f"a batch of {size} images does not fit into memory; set micro_batch, or train.recompute=true")
    return size // 2


def seconds_or_nothing(step: Callable[[], object], device: torch.device) -> float | None:
    """How long a step takes once it is warm; nothing where memory runs out."""
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
