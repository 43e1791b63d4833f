"""The processes that share each batch, and Accelerate, which connects them."""

import os
import shutil
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import TorchDynamoPlugin
from torch import Tensor, nn

COMPILE_STEPS = 1000
"""On a GPU, compiling takes minutes, which a stage of fewer steps does not win back."""


@dataclass(frozen=True)
class Processes:
    """The processes that train together, as one of them sees them.

    Args:
        rank: number of this process, from 0.
        count: number of processes.
        device: device of this process.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0

    def rows(self, size: int) -> tuple[slice, float]:
        """The rows of a batch that this process computes, and the fraction of the batch that they are.

        In a batch of fewer rows than processes, a process without a row of its own computes row 0 with fraction 0: all
        processes must take part when gradients are exchanged.

        Args:
            size: number of rows in the batch.
        """
        begin, end = size * self.rank // self.count, size * (self.rank + 1) // self.count
        return (slice(begin, end), (end - begin) / size) if end > begin else (slice(0, 1), 0.0)

    def reduce(self, value: Tensor, by: Literal["sum", "min", "max"]) -> Tensor:
        """The sum, minimum or maximum over all processes; `value` itself stays as it is."""
        if self.count == 1:
            return value
        value = value.clone()
        torch.distributed.all_reduce(value, getattr(torch.distributed.ReduceOp, by.upper()))
        return value

    def synchronise_statistics(self, model: nn.Module) -> None:
        """Give all processes the batch norm statistics of the first: on CPUs each process gathers its own."""
        if self.count > 1:
            for name, buffer in model.named_buffers():
                if "running_" in name or "num_batches" in name:
                    torch.distributed.broadcast(buffer, 0)


def new_accelerator(device: torch.device, dtype: torch.dtype) -> Accelerator:
    """Accelerate for one stage.

    Args:
        device: device of this process.
        dtype: bfloat16 for autocast, float32 for none.
    """
    AcceleratorState._reset_state()  # an earlier stage in this process may have had another precision
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no" if dtype == torch.float32 else "bf16",
        # Buffers are class embeddings, which never change, and statistics, which `synchronise_statistics` handles.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    # Accelerate that does not find the other processes trains alone without a word.
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    assert accelerator.num_processes == expected, f"{accelerator.num_processes} of {expected} processes take part"
    return accelerator


def prepare(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, mode: Literal["auto", "on", "off"],
    steps: int,
) -> tuple[Any, Any]:  # fmt: skip
    """The model wrapped for autocast, for several processes and perhaps compiled; and the optimizer that fits it.

    Args:
        accelerator: Accelerate for this stage.
        model: the model to train.
        optimizer: the optimizer of its trained weights.
        mode: value of `train.compile`.
        steps: number of steps in the stage.
    """
    worthwhile = accelerator.device.type == "cuda" and steps >= COMPILE_STEPS and shutil.which("cc")
    if mode == "on" or (mode == "auto" and worthwhile):
        accelerator.state.dynamo_plugin = TorchDynamoPlugin(backend="inductor")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*broadcast_buffers")  # Accelerate knows no other name for it
        return accelerator.prepare_model(model), accelerator.prepare_optimizer(optimizer)


def unwrap(accelerator: Accelerator, net: Any, model: nn.Module) -> None:
    """Undo what `prepare` did to the model, so that it computes as before and another stage can prepare it."""
    accelerator.unwrap_model(net, keep_fp32_wrapper=False)
    model.__dict__.pop("_is_accelerate_prepared", None)
