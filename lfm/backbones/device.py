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
    return _multiplies_bf16(device)


def bf16_warning(precision: str, device: "torch.device") -> str:
    """What bfloat16 costs where it was asked for and the hardware has no instructions for it; else nothing."""
    if precision != "bf16" or _multiplies_bf16(device):
        return ""
    return (
        f"warning: precision bf16 was asked for, and this {'GPU' if device.type == 'cuda' else 'CPU'} has no "
        "instructions that multiply bfloat16: it is computed by way of float32, which may take several times as long "
        "as fp32 itself; auto or fp32 is faster here"
    )


def _multiplies_bf16(device: "torch.device") -> bool:
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())
