"""One function per pipeline step: inputs and outputs are folders, everything else is the configuration.

Each step names its result by a hash of all it depends on (`lfm.storage.store.build_once`) and takes it from the
store when it is there, so a second run repeats nothing that has not changed. Heavy imports wait inside the functions.
"""

from lfm.jobs.audit import report_data
from lfm.jobs.lifecycle import belong_to, configure, configure_variant, finish
from lfm.jobs.prepare import (
    backbone_for,
    check,
    dataset_for,
    embed_text,
    embeddings_for,
    fetch_backbone,
    prepare_data,
)
from lfm.jobs.preview import SHOWN_CLASSES, describe, inspect
from lfm.jobs.retrain import data_news, decide
from lfm.jobs.scoring import evaluate, register, shown_scores, untrained
from lfm.jobs.step import ERROR_MARK
from lfm.jobs.sweep import compare, plan_sweep
from lfm.jobs.training import new_model, train_stage
from lfm.tracking.curves import Curves

__all__ = [
    "ERROR_MARK",
    "SHOWN_CLASSES",
    "Curves",
    "backbone_for",
    "belong_to",
    "check",
    "compare",
    "configure",
    "configure_variant",
    "data_news",
    "dataset_for",
    "decide",
    "describe",
    "embed_text",
    "embeddings_for",
    "evaluate",
    "fetch_backbone",
    "finish",
    "inspect",
    "new_model",
    "plan_sweep",
    "prepare_data",
    "register",
    "report_data",
    "shown_scores",
    "train_stage",
    "untrained",
]
