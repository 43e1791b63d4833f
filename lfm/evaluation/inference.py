"""A model on a split: where it runs, what it gives, how it scores; on any number of processes.

Letters in the names give shapes: N images, D embedding dimensions.
"""

from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from lfm.backbones.device import use_bf16
from lfm.backbones.model import LFM
from lfm.config.schema import RunConfig
from lfm.data.images import Images
from lfm.evaluation.metrics import accuracy, confusion, hits, metrics, predict

EVAL_BATCH, EVAL_PIXELS = 1024, 1 << 24
CONFUSION_CLASSES = 2048
"""With more there is no confusion matrix: it has C^2 entries."""


def summed(value: Tensor) -> Tensor:
    """The sum over all processes."""
    if PartialState().num_processes > 1:
        value = value.clone()
        torch.distributed.all_reduce(value)
    return value


def _own_share(images: Images) -> tuple[Tensor, ...]:
    """The positions that this process scores, each image in one process, in batches that fit.

    As many batches in each process: those that share a model's weights compute together.
    """
    state = PartialState()
    size = max(16, min(EVAL_BATCH, EVAL_PIXELS // images.side**2))
    order = torch.arange(state.process_index, len(images), state.num_processes)
    return order.tensor_split(max(1, -(-len(images) // (state.num_processes * size))))


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    """The precision of a run, to be entered."""
    return torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(config.train.precision, device))


@torch.inference_mode()
def image_features(model: LFM, images: Images, config: RunConfig) -> Tensor:
    """What the frozen encoder makes of this process's share of a split, before W_I. (N, D)."""
    model.eval()
    with autocast(config, images.device):
        return torch.cat([model.image(images.exact(index)) for index in _own_share(images)])


@torch.inference_mode()
def predict_split(model: LFM, images: Images, config: RunConfig, features: Tensor | None = None) -> Tensor:
    """Class of each image of this process's share, in its order. (N,) int64; puts the model into eval mode.

    Args:
        model: any stage.
        images: the split, on the model's device.
        config: precision.
        features: of `image_features`, if the encoder has not changed since.
    """
    model.eval()
    with autocast(config, images.device):
        if features is None:
            return predict(model, map(images.exact, _own_share(images)))
        return predict(model.head, features.split(EVAL_BATCH))


def score(
    predicted_N: Tensor,
    images: Images,
    train_label_N: Tensor,
    config: RunConfig,
    classes: int,
    confused: bool = True,
) -> dict[str, Any]:
    """Metrics of what `predict_split` found, over all processes.

    Args:
        predicted_N: of this process's share.
        images: the split.
        train_label_N: training labels, whose counts set the shot groups.
        config: shots.
        classes: how many.
        confused: with the confusion matrix, where there are no more than `CONFUSION_CLASSES`.
    """
    label_N = images.label_N[torch.cat(_own_share(images)).to(images.device)]
    count_C = train_label_N.cpu().bincount(minlength=classes)
    if confused and classes <= CONFUSION_CLASSES:
        return metrics(summed(confusion(predicted_N, label_N, classes)).cpu(), count_C, config.shots)
    return accuracy(summed(hits(predicted_N, label_N, classes)).cpu(), count_C, config.shots)


def score_split(
    model: LFM,
    images: Images,
    train_label_N: Tensor,
    config: RunConfig,
    features: Tensor | None = None,
    confused: bool = True,
) -> dict[str, Any]:
    """Metrics of a model on a split; puts the model into eval mode.

    Args:
        model: any stage.
        images: the split, on the model's device.
        train_label_N: training labels, whose counts set the shot groups.
        config: shots and precision.
        features: of `image_features`, if the encoder has not changed since.
        confused: with the confusion matrix, where there are no more than `CONFUSION_CLASSES`.
    """
    predicted_N = predict_split(model, images, config, features)
    return score(predicted_N, images, train_label_N, config, len(model.text_CD), confused)
