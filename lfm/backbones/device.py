"""Where a model runs, and in which precision. PyTorch, which takes seconds to import, waits inside the functions."""

from typing import TYPE_CHECKING

from lfm.errors import InputError

if TYPE_CHECKING:
    import torch


def check_device(name: str) -> None:
    """Refuse a device that is not there; raises as `pick_device`."""
    if name not in ("auto", "cpu"):
        pick_device(name)


def pick_device(name: str) -> "torch.device":
    """The device named by `train.device`.

    Raises:
        InputError: a name PyTorch does not know, or a GPU that is not there.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"train.device {name!r} is no device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"train.device {name!r}: this machine has {torch.cuda.device_count()} GPUs; use cpu or auto")
    return device


def use_bf16(precision: str, device: "torch.device") -> bool:
    """Whether to multiply in bfloat16: on request, or where the hardware does it natively."""
    if precision != "auto":
        return precision == "bf16"
    import torch

    return torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
