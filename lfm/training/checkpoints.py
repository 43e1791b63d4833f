"""Checkpoints of one training stage: complete or absent, the last few kept, the newest intact one found again.

A checkpoint is a folder `step-NNNNNNNNN` with the tensors as safetensors, a few facts as JSON, and checksums.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lfm.errors import InputError
from lfm.progress import say
from lfm.storage.artifact import publishing, verify

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

TENSORS, FACTS = "state.safetensors", "step.json"


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in a folder.

    Args:
        folder: belongs to one stage of one configuration.
        keep: the last so many stay.
        made_with: dotted name -> value of all that the weights depend on; training goes on under the same alone.
        written: called with each new checkpoint's folder.
    """

    folder: Path
    keep: int
    made_with: Mapping[str, Any]
    written: Callable[[Path], None] | None = None

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write the state after `step` steps.

        Args:
            tensors: all that training goes on from.
            facts: JSON-like, `step` among them.
        """
        folder = self.folder / f"step-{facts['step']:09d}"
        with publishing(folder, "checkpoint", {"step": facts["step"]}) as aside:
            save_file({name: value.contiguous() for name, value in tensors.items()}, aside / TENSORS)
            (aside / FACTS).write_text(json.dumps({**facts, "made_with": dict(self.made_with)}))
        for old in sorted(self.folder.glob("step-*"))[: -self.keep]:
            shutil.rmtree(old)
        if self.written:
            self.written(folder)

    def newest(self, device: torch.device) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Facts and tensors of the newest intact checkpoint, if there is one.

        Raises:
            InputError: it was made under other values; they are named.
        """
        for folder in self._intact():
            facts = json.loads((folder / FACTS).read_text())
            now = json.loads(json.dumps(dict(self.made_with)))
            then = facts["made_with"]
            changed = [f"{k} {then.get(k)} -> {now.get(k)}" for k in sorted(then | now) if then.get(k) != now.get(k)]
            if changed:
                raise InputError(
                    f"{folder} was made under other values: {', '.join(changed)}; set them back to go on, "
                    "or use another folder to begin anew"
                )
            return facts, load_file(folder / TENSORS, device=str(device))
        return None

    def _intact(self) -> Iterator[Path]:
        for folder in sorted(self.folder.glob("step-*"), reverse=True):
            try:
                verify(folder)
            except InputError:
                say(f"checkpoint {folder.name} is torn, trying the one before")
                continue
            yield folder


def whole(value: Tensor) -> Tensor:
    """The tensor; of one that processes share, all of it: then every process must ask."""
    return value.full_tensor() if _is_shared(value) else value


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """Optimizer state in its parameter's memory layout, on which the fused step relies, and shared as it is."""
    if value.shape != parameter.shape:  # the count of steps
        return value
    if _is_shared(parameter):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return torch.empty_like(parameter).copy_(value)


def _is_shared(value: Any) -> TypeGuard["DTensor"]:
    """Without the module of such tensors, whose import takes most of a second."""
    return hasattr(value, "device_mesh")
