"""The model's memory while it trains: layout, activations computed again, frozen weights in bf16."""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lfm.backbones.model import LFM
from lfm.errors import InputError
from lfm.training.processes import Processes

BLOCK_WEIGHTS = 10_000
"""Modules with fewer weights are not worth computing again."""


def lay_out(model: LFM, recompute: bool, processes: Processes) -> torch.memory_format:
    """Change the model in place so that it trains fast, or fits.

    Args:
        model: the model, on its device.
        recompute: compute the tower's activations again in the backward pass.
        processes: with several on GPUs, batch norm works on all their rows.

    Returns:
        The memory layout that its images must have: a convolution takes that of either of its inputs.

    Raises:
        InputError: this tower cannot be recomputed.
    """
    if processes.count > 1 and processes.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model.image)
    if recompute:
        recompute_activations(model.image)
    layout = layout_of(model.image, processes.device)
    model.to(memory_format=layout)
    return layout


def layout_of(tower: nn.Module, device: torch.device) -> torch.memory_format:
    """channels_last; the plain layout on a CPU for a tower with a convolution whose stride is larger than its kernel.

    In channels_last PyTorch's CPU code (2.13 and 2.15) writes past its memory in the backward pass of such a
    convolution with few input channels, which ends the process: MobileCLIP's stem has one of 1 x 1 pixels and stride 2.
    How few is not known, so all are counted. The plain layout costs a MobileCLIP2-S0 15 % of a step in float32, 8 % in
    bf16. Other towers keep channels_last: RN50 gains 7 % by it, small convolutions in bf16 far more, and
    ViT-B/32 and convnext_base take the same time both ways: most of their work is in matrix products.
    """
    convolutions = [module for module in tower.modules() if isinstance(module, nn.Conv2d)]
    skips = any(kernel < stride for c in convolutions for kernel, stride in zip(c.kernel_size, c.stride, strict=True))
    return torch.contiguous_format if skips and device.type == "cpu" else torch.channels_last


def blocks(tower: nn.Module) -> Iterator[nn.Module]:
    """The repeated parts of a tower: the largest members of its lists that hold enough weights."""
    for child in tower.children():
        if isinstance(tower, nn.ModuleList | nn.Sequential) and _weights(child) >= BLOCK_WEIGHTS:
            yield child
        else:
            yield from blocks(child)


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def recompute_activations(tower: nn.Module) -> None:
    """Keep only the input of each block; the backward pass computes the rest again (Chen et al. 2016).

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


def cast_to_bf16(tower: nn.Module) -> dict[str, Tensor]:
    """Cast a frozen tower's weights to bf16 in place, once.

    Autocast would cast them in every step: it keeps its casts only for weights that train. The products are the same
    to the last bit.

    Returns:
        Name -> the weights as they were, float32.
    """
    before: dict[str, Tensor] = {}
    for place, module in tower.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention):
            for name, parameter in module.named_parameters(recurse=False):
                before[f"{place}.{name}"] = parameter.data
                parameter.data = parameter.data.bfloat16()
    return before


class FrozenTower:
    """A tower that is bf16 while a stage trains behind it, and float32 in checkpoints and afterwards.

    Args:
        model: its tower is cast in place.
        cast: whether to do so; else nothing changes.
    """

    def __init__(self, model: LFM, cast: bool) -> None:
        self.model = model
        self.float32 = {f"image.{name}": weights for name, weights in cast_to_bf16(model.image).items()} if cast else {}

    def state_dict(self) -> dict[str, Tensor]:
        """The whole model's tensors, all weights float32."""
        return {name: self.float32.get(name, value) for name, value in self.model.state_dict().items()}

    def restore(self) -> None:
        """Give the tower its float32 weights back."""
        for name, weights in self.float32.items():
            self.model.get_parameter(name).data = weights
