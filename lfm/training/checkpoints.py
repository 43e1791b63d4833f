"""Checkpoints of one training stage: complete or absent, the last few kept, the newest intact one found again.

A checkpoint is a folder `step-NNNNNNNNN` with the tensors as safetensors, a few facts as JSON, and checksums.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lfm.config.overrides import flatten
from lfm.config.schema import RunConfig
from lfm.errors import InputError
from lfm.progress import say
from lfm.storage.artifact import publishing, verify

TENSORS, FACTS = "state.safetensors", "step.json"


@dataclass
class Position:
    """How far a stage has come.

    Args:
        step: number of steps done.
        images: number of images seen in this epoch.
        loss_sum: sum of the losses of those images; each process counts the images it computed.
    """

    step: int
    images: int
    loss_sum: Tensor

    def add(self, loss_sum: Tensor, images: int) -> None:
        """Count a step."""
        self.loss_sum += loss_sum
        self.images += images
        self.step += 1

    def end_epoch(self) -> None:
        """Count images and losses from 0 again."""
        self.loss_sum, self.images = torch.zeros_like(self.loss_sum), 0


@dataclass(frozen=True)
class Snapshot:
    """All that a stage is resumed from.

    Args:
        position: how far the stage has come; `loss_sum` is that of all processes.
        batch_size: images of a step, over all processes; "auto" if it is still to be found.
        model: tensors of the model, all weights float32; empty at the beginning of a stage.
        optimizer: state of the optimizer for each trained parameter, in their order; empty at the beginning.
        average: moving average of each trained parameter; empty where none is kept.
    """

    position: Position
    batch_size: int | Literal["auto"]
    model: Mapping[str, Tensor]
    optimizer: tuple[Mapping[str, Tensor], ...]
    average: tuple[Tensor, ...] = ()

    @classmethod
    def take(
        cls, position: Position, batch_size: int, model: Mapping[str, Tensor], optimizer: torch.optim.Optimizer,
        trained: list[nn.Parameter], average: Sequence[Tensor] = (),
    ) -> "Snapshot":  # fmt: skip
        """The state of a stage that is running."""
        states = tuple(optimizer.state[parameter] for parameter in trained)
        return cls(position, batch_size, model, states, tuple(average))

    def copy(self) -> "Snapshot":
        """The same in the host's memory, where training does not change it."""

        def copied(value: Tensor) -> Tensor:
            return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)

        return Snapshot(
            Position(self.position.step, self.position.images, copied(self.position.loss_sum)),
            self.batch_size,
            {name: copied(value) for name, value in self.model.items()},
            tuple({name: copied(value) for name, value in state.items()} for state in self.optimizer),
            tuple(map(copied, self.average)),
        )

    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(value.nbytes for value in self.tensors().values())

    def restore_optimizer(self, optimizer: torch.optim.Optimizer, trained: list[nn.Parameter]) -> None:
        """Give a new optimizer the state of the old one; the fused step needs it in the parameters' memory layout."""
        for parameter, state in zip(trained, self.optimizer, strict=bool(self.optimizer)):
            optimizer.state[parameter] = {
                name: value if value.shape != parameter.shape else torch.empty_like(parameter).copy_(value)
                for name, value in state.items()
            }

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under the names that they have in the file."""
        named = {"epoch.total": self.position.loss_sum} | {f"model.{k}": v for k, v in self.model.items()}
        for k, state in enumerate(self.optimizer):
            named |= {f"optimizer.{k}.{name}": value for name, value in state.items()}
        return named | {f"average.{k}": value for k, value in enumerate(self.average)}

    def facts(self) -> dict[str, Any]:
        """The numbers that go with the tensors."""
        return {"step": self.position.step, "images": self.position.images, "batch_size": self.batch_size}

    @classmethod
    def read(cls, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "Snapshot":
        """The reverse of `facts` and `tensors`."""
        states: dict[int, dict[str, Tensor]] = {}
        for path, value in _under("optimizer.", tensors).items():
            number, _, name = path.partition(".")
            states.setdefault(int(number), {})[name] = value
        return cls(
            Position(facts["step"], facts["images"], tensors["epoch.total"]),
            facts["batch_size"],
            _under("model.", tensors),
            tuple(states[number] for number in sorted(states)),
            tuple(value for _, value in sorted((int(k), v) for k, v in _under("average.", tensors).items())),
        )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def made_with(config: RunConfig, stage: int, alpha: float) -> dict[str, Any]:
    """Dotted name -> value of all that a stage's weights depend on.

    Args:
        config: the run's configuration.
        stage: 1 or 2.
        alpha: the strength of the label shift as resolved.
    """
    of_train = ("train.crop", "train.flip", "train.precision", "train.resize")
    fields = ("seed", "model.", "text.", "mixup.", "loss.", f"stage{stage}.", *of_train)
    return {k: v for k, v in flatten(config).items() if k.startswith(fields)} | {"alpha": alpha}


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in a folder.

    Args:
        folder: folder of one stage of one configuration.
        keep: number of checkpoints kept.
        made_with: dotted name -> value of all that the weights depend on; only a run with the same values resumes.
        written: called with the folder of each new checkpoint.
    """

    folder: Path
    keep: int
    made_with: Mapping[str, Any]
    written: Callable[[Path], None] | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint and remove the oldest."""
        facts = snapshot.facts()
        folder = self.folder / f"step-{facts['step']:09d}"
        with publishing(folder, "checkpoint", {"step": facts["step"]}) as aside:
            save_file({name: value.contiguous() for name, value in snapshot.tensors().items()}, aside / TENSORS)
            (aside / FACTS).write_text(json.dumps({**facts, "made_with": dict(self.made_with)}))
        for old in sorted(self.folder.glob("step-*"))[: -self.keep]:
            shutil.rmtree(old)
        if self.written:
            self.written(folder)

    def remove_left_behind(self) -> None:
        """Remove what a killed process had written of a checkpoint."""
        for aside in self.folder.glob(".step-*"):
            shutil.rmtree(aside, ignore_errors=True)

    def newest(self, device: torch.device) -> Snapshot | None:
        """The newest intact checkpoint, if there is one.

        Raises:
            InputError: it was made with other values; they are named.
        """
        for folder in self._intact():
            facts = json.loads((folder / FACTS).read_text())
            now = json.loads(json.dumps(dict(self.made_with)))
            then = facts["made_with"]
            changed = [f"{k} {then.get(k)} -> {now.get(k)}" for k in sorted(then | now) if then.get(k) != now.get(k)]
            if changed:
                raise InputError(
                    f"{folder} was made with other values: {', '.join(changed)}; set them back to resume, "
                    "or use another folder to start over"
                )
            return Snapshot.read(facts, load_file(folder / TENSORS, device=str(device)))
        return None

    def _intact(self) -> Iterator[Path]:
        for folder in sorted(self.folder.glob("step-*"), reverse=True):
            try:
                verify(folder)
            except InputError:
                say(f"checkpoint {folder.name} is torn, trying the one before")
                continue
            yield folder
