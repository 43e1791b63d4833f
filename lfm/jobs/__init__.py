"""One function per pipeline step: inputs and outputs are folders, everything else is the configuration.

Each step names its result by a hash of all it depends on (`lfm.artifact.build_once`) and takes it from the store
when it is there, so a second run repeats nothing that has not changed. Heavy imports wait inside the functions.
"""

from lfm.jobs.audit import report_data
from lfm.jobs.prepare import (
    backbone_for,
    check,
    configure,
    dataset_for,
    embed_text,
    embeddings_for,
    fetch_backbone,
    prepare_data,
)
from lfm.jobs.scoring import evaluate, register, untrained
from lfm.jobs.step import ERROR_MARK
from lfm.jobs.training import SHOWN_CLASSES, Curves, describe, inspect, new_model, train_stage

__all__ = [
    "ERROR_MARK",
    "SHOWN_CLASSES",
    "Curves",
    "backbone_for",
    "check",
    "configure",
    "dataset_for",
    "describe",
    "embed_text",
    "embeddings_for",
    "evaluate",
    "fetch_backbone",
    "inspect",
    "new_model",
    "prepare_data",
    "register",
    "report_data",
    "train_stage",
    "untrained",
]
