"""How a pipeline run begins and ends in MLflow."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from lfm.config.presets import load
from lfm.config.run_parameters import to_overrides
from lfm.config.schema import RunConfig
from lfm.errors import InputError
from lfm.jobs.prepare import check
from lfm.jobs.step import step

ENDS = {
    "COMPLETE": "FINISHED", "CACHED": "FINISHED", "SUCCEEDED": "FINISHED",
    "FAILED": "FAILED", "CANCELED": "KILLED", "CANCELLED": "KILLED",
}  # fmt: skip
"""State that KFP gives to the exit handler -> MLflow's status. A backend has the words of ML Metadata (KFP 2.17.0,
driver/resolve.go:472), kfp.local SUCCEEDED. RUNNING, NEW and UNKNOWN say nothing of the end."""


@step
def configure(preset: str, values: Mapping[str, Any], overrides: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Resolve and check the configuration, and begin the pipeline run in MLflow.

    Args:
        preset: Name of the preset.
        values: Value of each run parameter (`lfm.config.run_parameters.RUN_PARAMETERS`).
        overrides: Values of any other fields; they win over the run parameters.

    Returns:
        The configuration, and the key by which the next steps find the run.
    """
    return _begin(load(preset, {**to_overrides(values), **whole_numbers(overrides)}))


@step
def configure_variant(variant: Mapping[str, Any] | str) -> tuple[dict[str, Any], str]:
    """Do what `configure` does, for one configuration of a sweep.

    Args:
        variant: Variant with its `name` and complete `config`, as `lfm.jobs.sweep.plan_sweep` returns them; or the
            same as JSON text, which a backend makes of the items of an untyped list.
    """
    if isinstance(variant, str):
        variant = json.loads(variant)
    assert isinstance(variant, Mapping)
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
    """Make this process's step a child of the pipeline run with this key."""
    os.environ["LFM_PIPELINE_RUN"] = run


def whole_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn 3.0 back into 3: KFP passes every number in a dictionary as a float."""
    return {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in values.items()}


@step
def finish(state: str) -> None:
    """Close the pipeline run in MLflow, if its last step has not; remove the TrainJobs that its steps left behind.

    Args:
        state: State in which KFP says the steps ended. It is RUNNING after Terminate and where the last branch was not
            taken: then the steps' own ends decide.
    """
    from lfm.jobs.left_behind import remove_jobs_of
    from lfm.tracking import pipeline_run

    remove_jobs_of(os.environ.get("LFM_PIPELINE_RUN", ""))
    status = ENDS.get(state)
    # A dead tracking server takes no status; the error to show is that of the step that met it first.
    with suppress(*() if status == "FINISHED" else (InputError,)):
        pipeline_run.end_pipeline_run(status)


def end_unfinished(status: str) -> None:
    """Close this process's pipeline run in MLflow if its exit handler did not, as after Ctrl-C.

    Args:
        status: FAILED or KILLED.
    """
    from lfm.tracking import pipeline_run

    with suppress(InputError):
        pipeline_run.end_pipeline_run(status)
