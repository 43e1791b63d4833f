"""The model's memory while it trains: layout, activations computed again, frozen weights in bf16."""

import functools

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lfm.backbones.blocks import blocks
from lfm.backbones.model import LFM
from lfm.errors import InputError
from lfm.training.processes import Processes


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


def recompute_activations(tower: nn.Module) -> None:
    """Keep only the input of each block; the backward pass computes the rest again (Chen et al. 2016).

    Raises:
        InputError: the tower has batch norm, whose statistics would count each batch twice, or no blocks.
    """
    found = [block for _, block in blocks(tower)]
    normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in tower.modules())
    if normed or not found:
        why = "has batch norm, which would see each batch twice" if normed else "has no blocks"
        raise InputError(f"train.recompute: this tower {why}; set it to false, and stage1.micro_batch for less memory")
    for block in found:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


class FrozenWeights:
    """A tower's weights that do not train: bf16 while a stage trains, float32 afterwards.

    Autocast would cast them in every step: it keeps its casts only for weights that train. The products are the same
    to the last bit.

    Args:
        tower: cast in place, where no weight of a module trains.
        cast: whether to do so; else nothing changes.
    """

    def __init__(self, tower: nn.Module, cast: bool) -> None:
        self.float32: dict[nn.Parameter, Tensor] = {}
        for module in tower.modules() if cast else ():
            if not isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention):
                continue
            if not any(parameter.requires_grad for parameter in module.parameters()):
                for parameter in module.parameters(recurse=False):
                    self.float32[parameter] = parameter.data
                    parameter.data = parameter.data.bfloat16()

    def restore(self) -> None:
        """Give the tower its float32 weights back."""
        for parameter, weights in self.float32.items():
            parameter.data = weights
