"""Dropout and drop path of the towers: they draw from PyTorch's global generators, which are seeded for each step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lfm.method.draws import generator


@contextmanager
def seeded(device: torch.device, *key: int | str) -> Iterator[None]:
    """Let PyTorch's global generators of the CPU and of a device begin from a hash of the key; they come out as before.

    Towers take no generator of their own (`torch.nn.Dropout`, timm's `DropPath`, open_clip's `PatchDropout`), so this
    is how their draws become a function of (seed, stage, step, process) alone, as all others are (docs/adr/0003).

    Args:
        device: of the model.
        key: what the draws depend on.
    """
    seed = generator(*key).initial_seed()
    on_gpu = device.type == "cuda"
    gpus = [torch.cuda.current_device() if device.index is None else device.index] if on_gpu else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            torch.cuda.default_generators[gpu].manual_seed(seed)
        yield
