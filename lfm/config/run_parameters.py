"""The run form: the dozen values that a person sees when starting a pipeline in the KFP UI.

A preset gives their defaults. Every other field of the configuration goes through `overrides`, which win.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from lfm.config.overrides import flatten
from lfm.config.presets import load
from lfm.config.schema import RunConfig


class Entry(NamedTuple):
    """A parameter of the form."""

    kind: type
    fields: tuple[str, ...]
    about: str


FORM = {
    "data_source": Entry(str, ("data.source",), "Where the images lie: a folder or s3:// prefix, a split list, CSV or "
        "Parquet file; empty: the published files, fetched where that can be."),
    "imbalance": Entry(float, ("data.imbalance",), "Imbalance factor gamma of the long-tailed subset; without effect "
        "where the data are taken as they are."),
    "backbone": Entry(str, ("model.tower",), "Image tower: an open_clip model such as ViT-B-32, or conv4."),
    "weights": Entry(str, ("model.weights",), "Its pre-trained weights: an open_clip tag, a checkpoint, or random."),
    "mixup": Entry(str, ("mixup.name",), "What an image is mixed with: none, mixup, remix or lfm."),
    "tau": Entry(float, ("mixup.tau",), "Temperature of local sampling: low pairs near neighbours, high tends to "
        "uniform."),
    "loss": Entry(str, ("loss.name",), "Loss: ce, balce, focal, ldam or mms."),
    "stage1_epochs": Entry(int, ("stage1.epochs",), "Epochs of stage 1, which tunes the image encoder; 0 skips it."),
    "stage1_lr": Entry(float, ("stage1.lr",), "Highest learning rate of stage 1."),
    "stage1_alpha": Entry(str, ("stage1.alpha",), "Strength of the label shift in stage 1: a number, or auto."),
    "stage2_epochs": Entry(int, ("stage2.epochs",), "Epochs of stage 2, which trains the linear layer; 0 skips it."),
    "stage2_lr": Entry(float, ("stage2.lr",), "Highest learning rate of stage 2."),
    "stage2_alpha": Entry(str, ("stage2.alpha",), "Strength of the label shift in stage 2: a number, or auto."),
    "batch_size": Entry(int, ("stage1.batch_size", "stage2.batch_size"), "Images of a step, over all GPUs."),
    "gpus": Entry(int, ("train.processes",), "GPUs of a training step, a process for each; on a cluster without GPUs: "
        "processes."),
    "seed": Entry(int, ("seed",), "Draws the subset, the initial weights and every batch."),
}  # fmt: skip


def filled(config: RunConfig) -> dict[str, Any]:
    """The form as this configuration fills it."""
    flat = flatten(config)
    return {name: entry.kind(flat[entry.fields[0]]) for name, entry in FORM.items()}


def read(form: Mapping[str, Any]) -> dict[str, Any]:
    """A filled form as overrides: field -> value."""
    return {field: form[name] for name, entry in FORM.items() for field in entry.fields}


def divide(preset: str, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A preset and its overrides as a filled form and the overrides that the form cannot say.

    Raises:
        InputError: as `lfm.config.presets.load`.
    """
    config = load(preset, overrides)
    form = filled(config)
    said, meant = read(form), flatten(config)
    heard = flatten(load(preset, said))
    rest = {name: value for name, value in overrides.items() if name not in said}
    return form, rest | {name: meant[name] for name in said if heard[name] != meant[name]}
