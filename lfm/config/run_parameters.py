"""The parameters that a person fills in when starting a pipeline, as in the run form of the KFP UI.

`RUN_PARAMETERS` is the only list of them: the parameters and descriptions of every pipeline and of the `configure`
component are made from it. A preset gives their defaults. Any other field of the configuration goes through the
parameter `overrides`, which wins.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin

from lfm.config.overrides import code_values, flatten
from lfm.config.presets import PRESETS
from lfm.config.schema import RunConfig


class RunParameter(NamedTuple):
    """A parameter of a pipeline."""

    type: type
    """Type of the value; KFP passes it as such."""
    fields: tuple[str, ...]
    """Fields of the configuration that take the value."""
    description: str


# `gpus` is text, since KFP's driver reads settings of a pod from text parameters alone: of a number it makes "" and
# leaves the limit out without a word (KFP 2.17.0, driver/resolve.go:818).
# The KFP UI sorts parameters by name and shows no description there. So a name is its field's, with _ for the dot:
# parameters of one section are together, and are named as in --set.
RUN_PARAMETERS = {
    "data_source": RunParameter(str, ("data.source",), "Where the images are: a folder or s3:// prefix, a split list, "
        "a CSV or Parquet file. Empty: the published files, downloaded where that is allowed."),
    "data_imbalance": RunParameter(float, ("data.imbalance",), "Imbalance factor gamma of the long-tailed subset. "
        "Without effect where the data are used as they are."),
    "model_tower": RunParameter(str, ("model.tower",), "Backbone, the image tower: an open_clip model such as "
        "ViT-B-32, or conv4."),
    "model_weights": RunParameter(str, ("model.weights",), "Pre-trained weights of the backbone: an open_clip tag, a "
        "checkpoint, or random."),
    "mixup_name": RunParameter(str, ("mixup.name",), "Mixup method: none, mixup, remix or lfm."),
    "mixup_tau": RunParameter(float, ("mixup.tau",), "Temperature tau of local sampling. Low: pairs of classes with "
        "similar text; high: nearly uniform pairs."),
    "loss_name": RunParameter(str, ("loss.name",), "Loss: ce, balce, focal, ldam or mms."),
    "stage1_epochs": RunParameter(int, ("stage1.epochs",), "Epochs of stage 1, which trains the image encoder; 0 "
        "skips it."),
    "stage1_lr": RunParameter(float, ("stage1.lr",), "Highest learning rate of stage 1."),
    "stage1_alpha": RunParameter(str, ("stage1.alpha",), "Strength alpha of the label shift in stage 1: a number, or "
        "auto."),
    "stage2_epochs": RunParameter(int, ("stage2.epochs",), "Epochs of stage 2, which trains the linear layer; 0 "
        "skips it."),
    "stage2_lr": RunParameter(float, ("stage2.lr",), "Highest learning rate of stage 2."),
    "stage2_alpha": RunParameter(str, ("stage2.alpha",), "Strength alpha of the label shift in stage 2: a number, or "
        "auto."),
    "batch_size": RunParameter(int, ("stage1.batch_size", "stage2.batch_size"), "Images in a training step of either "
        "stage, counted over all GPUs."),
    "gpus": RunParameter(str, ("train.processes",), "GPUs for training, with one process each. On a cluster without "
        "GPUs: number of processes."),
    "seed": RunParameter(int, ("seed",), "Seed of the subset, the initial weights and every batch."),
}  # fmt: skip
OVERRIDES = 'Any other field of the configuration, as in {"stage1.warmup": 0.1}; wins over the other parameters.'
"""Description of the parameter `overrides`."""


def choices(name: str) -> tuple[str, ...]:
    """The values that a run parameter may have, where its field has a closed list of them; else none.

    Args:
        name: Name of the run parameter.
    """
    section, _, field = RUN_PARAMETERS[name].fields[0].rpartition(".")
    kind: Any = RunConfig.model_fields[section].annotation if section else RunConfig
    annotation = kind.model_fields[field].annotation
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def parameter_values(config: RunConfig) -> dict[str, Any]:
    """The value of each run parameter in this configuration."""
    flat = flatten(config)
    return {name: parameter.type(flat[parameter.fields[0]]) for name, parameter in RUN_PARAMETERS.items()}


def to_overrides(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of all run parameters as overrides: field -> value."""
    return {field: values[name] for name, parameter in RUN_PARAMETERS.items() for field in parameter.fields}


def pipeline_arguments(config: RunConfig) -> dict[str, Any]:
    """Arguments of a pipeline that give exactly this configuration.

    Returns:
        All run parameters, and `overrides` with the fields that differ from the preset and that no run parameter sets:
        `load(config.preset, {**to_overrides(arguments), **arguments["overrides"]})` is `config` again.
    """
    values, wanted = parameter_values(config), flatten(config)
    preset = flatten(PRESETS[config.preset]()) | (code_values(config.mixup.name) if config.fidelity == "code" else {})
    overrides = {}
    for field, value in wanted.items():
        expected = preset[field]
        for name, parameter in RUN_PARAMETERS.items():
            if field in parameter.fields:  # batch_size sets two fields, which may differ
                value, expected = parameter.type(value), values[name]
        if value != expected:
            overrides[field] = list(value) if isinstance(value, tuple) else value
    return values | {"overrides": overrides}
