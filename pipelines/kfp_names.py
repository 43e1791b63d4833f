"""Names of runs and schedules in KFP's lists."""

import time

from lfm.config.overrides import flatten
from lfm.config.presets import PRESETS
from lfm.config.schema import NAMED, RunConfig
from lfm.pipelines.compile import pipeline_name

SHOWN_FIELDS = 4
"""Fields that a run's name shows at most."""


def run_name(kind: str, config: RunConfig) -> str:
    """Name of a run in KFP's list: what differs from the preset, so that runs can be told apart there.

    Returns:
        As in `lfm + mms, stage1.lr 0.001, seed 1 (train, 2026-11-27 22:01:05)`.
    """
    preset, changed = flatten(PRESETS[config.preset]()), []
    for field, value in flatten(config).items():
        if value != preset[field] and field not in ("seed", *NAMED):
            changed.append(f"{field} {value}")
    shown = ", ".join([config.method, *changed[:SHOWN_FIELDS], *(["..."] if len(changed) > SHOWN_FIELDS else [])])
    return f"{shown}, seed {config.seed} ({kind}, {time.strftime('%Y-%m-%d %H:%M:%S')})"


def schedule_name(preset: str) -> str:
    """Name of a schedule. KFP names its runs after it, and takes no other name for them.

    It keeps the first 25 of its letters, digits and hyphens, and puts five letters right behind, then count and hash
    (KFP 2.17.0, apiserver/template/template.go:325): hence the hyphen at the end.
    """
    return f"{pipeline_name('retrain', preset)}-"
