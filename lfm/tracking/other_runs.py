"""Other runs of the same retraining, found in MLflow."""

import os
import time

from mlflow import MlflowClient
from mlflow.entities import Run

from lfm.config.overrides import flatten
from lfm.config.schema import RunConfig
from lfm.tracking.client import connect, every
from lfm.tracking.membership import PARENT, Membership
from lfm.tracking.past_runs import when

KIND, RETRAINING = "lfm.kind", "retraining"
QUIET = 24 * 3600 * 1000
"""Milliseconds without a sign of life after which a run is not waited for, whatever its status: `finish` may have been
kept from closing it."""
PULSE = "system/cpu_utilization_percentage"
"""A metric that every step logs every ten seconds."""


def going_on(config: RunConfig) -> str:
    """Which other retraining of this configuration goes on that began before this one; empty: none does.

    This run is marked as a retraining first. Of two that begin together the later one sees the earlier. Outside a
    cluster none is looked for: a run that was killed there has no `finish` that closes it, and the same command goes on
    from where it was; two that go on share what each makes.

    Args:
        config: The complete configuration.
    """
    client = connect()
    own_id = Membership.here().parent(client)
    assert own_id, "the pipeline run has begun"
    client.set_tag(own_id, KIND, RETRAINING)
    if "KUBERNETES_SERVICE_HOST" not in os.environ:
        return ""
    own, wanted = client.get_run(own_id), {name: str(value) for name, value in flatten(config).items()}
    running = f"attributes.status = 'RUNNING' and tags.`{KIND}` = '{RETRAINING}'"
    for run in every(client.search_runs, [own.info.experiment_id], running):
        before = (run.info.start_time, run.info.run_id) < (own.info.start_time, own_id)
        same = all(run.data.params.get(name) == value for name, value in wanted.items())
        if before and same and _last_sign(client, run) > time.time() * 1000 - QUIET:
            return f"{run.info.run_name!r} of {when(run.info.start_time)} ({run.info.run_id[:12]})"
    return ""


def is_retraining() -> bool:
    """Whether this process's pipeline run is a retraining, as `going_on` has marked it."""
    client = connect()
    own = Membership.here().parent(client)
    assert own, "the pipeline run has begun"
    return bool(client.get_run(own).data.tags.get(KIND) == RETRAINING)


def _last_sign(client: MlflowClient, run: Run) -> int:
    """When a run's steps were last heard of, in milliseconds since 1970."""
    signs: list[int] = [run.info.start_time]
    for step in every(client.search_runs, [run.info.experiment_id], f"tags.`{PARENT}` = '{run.info.run_id}'"):
        signs += [step.info.start_time, step.info.end_time or 0]
        if PULSE in step.data.metrics and step.info.status == "RUNNING":
            signs += [point.timestamp for point in client.get_metric_history(step.info.run_id, PULSE)]
    return max(signs)
