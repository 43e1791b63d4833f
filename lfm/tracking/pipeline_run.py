"""MLflow: one parent run per pipeline run, a child per step; how each begins and ends.

Which pipeline run a step belongs to comes from the environment, so that it does not enter KFP's cache keys:
LFM_PIPELINE_RUN is a key under which the first step makes the parent and the others find it (on a cluster the id of
the KFP run). Where KFP's own MLflow plugin is at work, MLFLOW_RUN_ID names the run that it made for the step, and the
parent is the one above all. A sweep has a run for each variant under the parent; its key is PARENT/VARIANT.
"""

import os
import select
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.time import get_current_time_millis

from lfm.errors import SIGTERM_EXIT, InputError, PassingError
from lfm.progress import say
from lfm.revision import commit
from lfm.storage.artifact import home
from lfm.tracking.client import connect, find_run
from lfm.tracking.database import ARTIFACTS, adopt_home
from lfm.tracking.membership import KEY, KEY_VARIABLE, Membership
from lfm.tracking.record_sender import RecordSender
from lfm.tracking.step_logger import ENDING, StepLogger, patience
from lfm.tracking.sync import sync
from lfm.tracking.system_metrics import SystemSampler
from lfm.tracking.uri import is_server, sqlite_file, tracking_uri, without_password

KIND = "mlflow.experimentKind", "custom_model_development"
"""Tag of an experiment with which MLflow 3 shows it as model training, not as the traces of a chat."""


def _experiment(client: MlflowClient, name: str) -> str:
    """The experiment's id; it is made unless it is there.

    Raises:
        InputError: it was deleted, and MLflow gives its name to no other.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        # Beside the SQLite file artifacts go to a folder; a server decides by itself.
        location = (home() / ARTIFACTS).as_uri() if sqlite_file() else None
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=dict([KIND])))
        except MlflowException:  # another step made it in between
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise InputError(
            f"the experiment {name!r} was deleted in MLflow, which keeps its name; restore it: MLFLOW_TRACKING_URI="
            f"{without_password(tracking_uri())} mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    if KIND[0] not in found.tags:
        client.set_experiment_tag(found.experiment_id, *KIND)
    return str(found.experiment_id)


def begin_pipeline_run(experiment: str, name: str, variant: str = "") -> str:
    """Make the parent run, or rename the one that is there (KFP's own, or an earlier try's).

    Args:
        experiment: MLflow experiment.
        name: shown in MLflow.
        variant: of a sweep; its run stands under the sweep's.

    Returns:
        The key under which the following steps find it.

    Raises:
        InputError: nothing says which pipeline run this process belongs to, or the server does not answer.
    """
    client, membership = _connect_in_time(), Membership.here()
    adopt_home()
    with suppress(Exception):  # what earlier runs left, as well as that goes
        sync()
    parent, key = membership.parent(client), membership.key or "".join(membership.lineage(client)[-1:])
    if not key or (variant and not parent):
        raise InputError(
            f"{KEY_VARIABLE} names no pipeline run that has begun, so this step belongs to none; start it with "
            f"lfm run, or compile the pipeline with lfm compile"
        )
    tags = {
        "lfm.commit": commit(),
        "mlflow.source.name": f"lfm {experiment}",
        "mlflow.source.type": "JOB",
        "mlflow.source.git.commit": commit().partition("-")[0],
    }
    if image := os.environ.get("LFM_IMAGE"):
        tags["lfm.image"] = image
    where = _experiment(client, experiment)
    if variant:
        assert parent
        tags["mlflow.parentRunId"], where = parent, client.get_run(parent).info.experiment_id
        key = f"{key}/{variant}"
        found = find_run(client, KEY, key)
        parent = str(found.info.run_id) if found else None
    if parent:
        client.update_run(parent, status="RUNNING", name=name)
    else:
        client.create_run(where, tags={KEY: key, **tags}, run_name=name)
    return key


def _connect_in_time() -> MlflowClient:
    """A client. In a pod the server may be away for `patience`, as while it or a name server starts again.

    Raises:
        InputError: the server does not answer.
    """
    until, waits = time.monotonic() + patience(), False
    while True:
        try:
            return connect()
        except PassingError:
            if "KUBERNETES_SERVICE_HOST" not in os.environ or time.monotonic() > until:
                raise
        if not waits:
            say(f"waiting for MLflow, {patience():.0f} s at most (LFM_MLFLOW_PATIENCE)")
        waits = True
        time.sleep(1)


def end_pipeline_run(status: str | None) -> None:
    """Give the parent run its final status, if it ever began, and the runs below it that are still open theirs.

    A server that is down gets it later, from the record that stays on disk or at LFM_STORE; where nothing can be
    written to disk, the status goes to the server directly.

    Args:
        status: FINISHED, FAILED or KILLED; None: the one that it has, or as its steps ended.

    Raises:
        InputError: neither the disk nor the server takes it.
    """
    if is_server() and _answers():
        with suppress(Exception):
            sync()  # what a step could not send while the server was away
    try:
        tracker = StepLogger("")
    except OSError:  # a volume that this user cannot write to: configure has failed of it already
        RecordSender(Membership.here().header(""), fresh=True)(
            {"do": "end_pipeline", "on": [], "status": status, "at": get_current_time_millis()}
        )
        return
    tracker.end_pipeline(status)
    if status == "FINISHED":
        _close(tracker)
    else:
        tracker.close(0 if is_server() and not _answers() else ENDING)


def tag(values: Mapping[str, str]) -> None:
    """Tag the pipeline run."""
    client = connect()
    parent = Membership.here().parent(client)
    assert parent, "the pipeline run has begun"
    for name, value in values.items():
        client.set_tag(parent, name, value)


def in_variant() -> bool:
    """Whether this process's step belongs to a configuration of a sweep."""
    return "/" in os.environ.get(KEY_VARIABLE, "")


def end_well() -> None:
    """Close the parent run (inside a sweep that of the variant): its last step is done.

    A try of a step that was lost with its node is still open below it; after Retry no `finish` comes to close that.
    """
    tracker = StepLogger("")
    tracker.end_pipeline("FINISHED")
    _close(tracker)


@contextmanager
def step_run(step: str) -> Iterator[StepLogger]:
    """A child run for a step; FAILED if the body raises, KILLED if it was ended, and the pipeline run with it.

    The next attempt opens the pipeline run again. Nobody else may close it: after Retry, KFP runs no exit handler.

    Raises:
        InputError: the pipeline run has not begun.
    """
    tracker = StepLogger(step)
    tracker.begin()
    sampler = SystemSampler(tracker.system)
    try:
        yield tracker
    except BaseException as error:
        sampler.stop()
        with suppress(Exception):  # a store that is down or full takes no status; the step's own error is what matters
            status = "KILLED" if _killed(error) else "FAILED"
            tracker.end(status)
            tracker.end(status, "parent")
            tracker.close(ENDING)
        raise
    sampler.stop()
    tracker.end("FINISHED")
    _close(tracker)


def _killed(error: BaseException | None) -> bool:
    """Whether the step was ended from outside: by Ctrl-C, by SIGTERM, or with the process that reads its output.

    KFP's launcher dies of the same SIGTERM, and our output goes to its pipe: in the second that a pod then has, a line
    of a stage that finishes its step fails with BrokenPipeError, with or without the exit that was asked for as its
    cause. (A stage that was terminated on KFP 2.17.0 was FAILED in MLflow, by both ways.)
    """
    if _nobody_reads():
        return True
    while error is not None:
        code = error.code if isinstance(error, SystemExit) else getattr(error, "exit_code", None)
        if isinstance(error, KeyboardInterrupt) or code == SIGTERM_EXIT:
            return True
        error = error.__cause__ or error.__context__
    return False


def _nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader is gone."""
    poll = select.poll()
    poll.register(1, 0)  # POLLERR is told unasked
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _close(tracker: StepLogger) -> None:
    if left := tracker.close(ENDING):
        say(f"warning: MLflow does not answer; {left} records wait on disk, and `lfm sync` sends them")


def _answers() -> bool:
    try:
        connect()
    except InputError:
        return False
    return True
