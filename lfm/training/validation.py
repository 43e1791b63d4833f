"""Scores on the validation images while a stage trains."""

from torch import Tensor

from lfm.backbones.model import LFM
from lfm.config.schema import GROUPS, RunConfig
from lfm.data.images import Images
from lfm.evaluation.inference import image_features, score_split


class Validation:
    """The validation split of a run, scored every few epochs.

    Args:
        stage: 1 or 2.
        config: the run's configuration.
        model: the model that trains.
        train: training split, whose counts set the shot groups.
        val: validation split; an empty one is never scored.
    """

    def __init__(self, stage: int, config: RunConfig, model: LFM, train: Images, val: Images) -> None:
        self.stage, self.config, self.model, self.train, self.val = stage, config, model, train, val
        self.features: Tensor | None = None
        """What the frozen encoder of stage 2 makes of the images: the same in every epoch."""

    def mean_accuracy(self) -> float:
        """Accuracy of the model as it is, mean over the classes that have validation images, in percent."""
        found = score_split(self.model, self.val, self.train.label_N, self.config, confused=False)["per_class"]
        known = [float(accuracy) for accuracy in found if accuracy is not None]
        return sum(known) / len(known)

    def scores(self, epochs: int) -> dict[str, float]:
        """Metrics by name after this many epochs; empty where none are due. Puts the model into its training mode."""
        every, last = self.config.train.validate_every, self.config.stage(self.stage).epochs
        if not every or not len(self.val.label_N) or (epochs % every and epochs != last):
            return {}
        if self.stage == 2 and self.features is None:
            self.features = image_features(self.model, self.val, self.config)
        score = score_split(self.model, self.val, self.train.label_N, self.config, self.features, confused=False)
        self.model.train_stage(self.stage)
        return {f"val/{k}": score[k] for k in ("all", *GROUPS) if score[k] is not None}
