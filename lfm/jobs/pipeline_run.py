"""How a pipeline run begins and ends in MLflow."""

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from lfm.config import run_parameters as forms
from lfm.config.presets import load
from lfm.config.schema import RunConfig
from lfm.errors import InputError
from lfm.jobs.prepare import check
from lfm.jobs.step import step

ENDS = {"SUCCEEDED": "FINISHED", "CANCELED": "KILLED", "CANCELLED": "KILLED"}


@step
def configure(preset: str, form: Mapping[str, Any], overrides: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Resolve and check the configuration, and begin the pipeline run in MLflow.

    Args:
        preset: its name.
        form: the values that stand in the run form (`lfm.config.run_parameters.FORM`), all or none.
        overrides: of any field; they win.

    Returns:
        The configuration, and the key under which the next steps find the run.
    """
    said = forms.read(form) if form else {}
    return _begin(load(preset, {**said, **whole(overrides)}))


@step
def configure_variant(variant: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """As `configure`, for one configuration of a sweep.

    Args:
        variant: its `name`, and its whole `config`, as `lfm.jobs.sweep.plan_sweep` gives them.
    """
    return _begin(RunConfig.model_validate(variant["config"]), str(variant["name"]))


def _begin(config: RunConfig, variant: str = "") -> tuple[dict[str, Any], str]:
    from lfm.tracking import pipeline_run

    check(config)
    name = variant or f"{config.method}, seed {config.seed}"
    key = pipeline_run.begin_pipeline_run(config.preset, name, variant)
    belong_to(key)
    with pipeline_run.step_run("configure") as run:
        run.config(config)
        run.tags({"lfm.method": config.method, "lfm.data": config.data.name})
    return config.model_dump(), key


def belong_to(run: str) -> None:
    """Let this process's step hang under the pipeline run with this key."""
    os.environ["LFM_PIPELINE_RUN"] = run


def whole(values: Mapping[str, Any]) -> dict[str, Any]:
    """3.0 -> 3: KFP passes every number in a dictionary as a float."""
    return {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in values.items()}


@step
def finish(state: str) -> None:
    """Close the pipeline run in MLflow.

    Args:
        state: KFP's word for how the steps ended.
    """
    from lfm.tracking import pipeline_run

    status = ENDS.get(state, "FAILED")
    # A tracking server that died takes no status; the error to show is that of the step that met it.
    with suppress(*() if status == "FINISHED" else (InputError,)):
        pipeline_run.end_pipeline_run(status)
