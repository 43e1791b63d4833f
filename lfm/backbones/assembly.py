"""A model put together from its tower, its class embeddings and what a configuration says of both."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from lfm.backbones.model import LFM, without_projection
from lfm.backbones.tuning import Tuning
from lfm.config.schema import RunConfig


@dataclass(frozen=True)
class Assembly:
    """What is made of a tower before it trains; kept with a model, so that the same is made where it is loaded.

    Args:
        tuning: what stage 1 trains of the tower.
        head: text or classes (`lfm.config.schema.ModelConfig.head`).
    """

    tuning: Tuning
    head: str

    @classmethod
    def of(cls, config: RunConfig, classes: int) -> "Assembly":
        """Of a run's configuration."""
        stage = config.stage1
        return cls(Tuning(stage.tune, stage.tune_size, stage.tune_init, classes, config.seed), config.model.head)

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> "Assembly":
        """The reverse of `kept`."""
        return cls(Tuning(**kept["tuning"]), kept["head"])

    def kept(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self)

    @property
    def on_base(self) -> bool:
        """Whether a model keeps what trains alone, and takes the rest from the untouched tower."""
        return self.tuning.kind != "full"

    def model(self, tower: nn.Module, text_CD: Tensor) -> LFM:
        """The model before any training.

        Args:
            tower: the image tower, changed in place.
            text_CD: class embeddings, rows of unit length.

        Raises:
            InputError: the tower has no parts of the kind that is to be tuned, or no projection to leave out.
        """
        projection_FD = without_projection(tower) if self.head == "classes" else None
        tuned = self.tuning.add_to(tower)
        return LFM(tower, text_CD, projection_FD, tuned if self.on_base else None)
