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
        keep: tuned or whole (`lfm.config.schema.ModelConfig.keep`).
    """

    tuning: Tuning
    head: str
    keep: str = "tuned"

    @classmethod
    def of(cls, config: RunConfig, classes: int) -> "Assembly":
        """Of a run's configuration."""
        stage = config.stage1
        tuning = Tuning(stage.tune, stage.tune_size, stage.tune_init, classes, config.seed)
        # A projection that was fitted to the training images cannot be fetched again.
        return cls(tuning, config.model.head, config.model.keep if config.model.aligned else "whole")

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> "Assembly":
        """The reverse of `kept`."""
        return cls(Tuning(**kept["tuning"]), kept["head"], kept["keep"])

    def kept(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self)

    @property
    def on_base(self) -> bool:
        """Whether a model keeps what trains alone, and takes the rest from the untouched tower."""
        return self.tuning.kind != "full" and self.keep == "tuned"

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
        return LFM(tower, text_CD, projection_FD, None if self.tuning.kind == "full" else tuned)

    def check(self, tower: nn.Module) -> None:
        """What `model` refuses, on a tower of any weights, the meta device's too.

        Raises:
            InputError: as `model`.
        """
        if self.head == "classes":
            without_projection(tower)
        self.tuning.check(tower)

    def state(self, model: LFM) -> dict[str, Tensor]:
        """What is kept of a trained model."""
        return model.changing() if self.on_base else model.state_dict()
