"""TrainJobs that nobody waits for any more are removed: by the next attempt of their step, or by the run's last step.

Both find them by label. A job that neither reaches ends by itself (`lfm.training.heartbeat`).
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lfm.jobs.train_job import NO_ANSWER, RUN, WORK, Backend, Cluster, NodeJob, reason, run_label
from lfm.progress import say
from lfm.storage.artifact import home

POLL_SECONDS = 1.0
END_SECONDS = 30.0
"""Longest wait for removed jobs to be gone."""


@contextmanager
def removed(backend: Backend, job: NodeJob) -> Iterator[None]:
    """Remove the jobs of this stage that a killed step left behind, and in the end the new one.

    In between a file under LFM_HOME says that the pipeline run has this job: its last step asks a cluster only then.
    """
    deadline = time.monotonic() + END_SECONDS
    with suppress(*NO_ANSWER):  # a server that refuses this will refuse the new job too, and that is reported
        while (left := backend.find(WORK, job.labels[WORK])) and time.monotonic() < deadline:
            for name in left:
                backend.delete(name)
            time.sleep(POLL_SECONDS)
    mark = _marks(job.labels.get(RUN, "without-run")) / job.name
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        yield
    finally:
        try:
            backend.delete(job.name)
            mark.unlink(missing_ok=True)
        except NO_ANSWER as error:
            say(f"warning: the job {job.name} may be left behind: {error}: {reason(error)}")


def remove_jobs_of(key: str, backend: Backend | None = None) -> None:
    """Remove the jobs that the steps of a pipeline run left behind: those of pods that were killed or lost.

    Args:
        key: of the pipeline run.
        backend: has started the jobs; None: Kubeflow Trainer on the configured cluster.
    """
    run = run_label(key)
    marks = _marks(run)
    if not run or not marks.is_dir():
        return
    try:
        if any(marks.iterdir()):
            backend = backend or Cluster()
            for name in backend.find(RUN, run):
                backend.delete(name)
                say(f"removed the job {name}, which a step had left behind")
        shutil.rmtree(marks)
    except (*NO_ANSWER, OSError) as error:
        say(f"warning: jobs of this run may be left behind: {error}: {reason(error)}")


def _marks(run: str) -> Path:
    return home() / "train-jobs" / run
