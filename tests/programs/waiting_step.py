"""A step that waits inside its MLflow run until it is ended."""

import time

from lfm.jobs.step import step
from lfm.tracking import pipeline_run


@step
def wait() -> None:
    with pipeline_run.step_run("stage 1"):
        print("ready", flush=True)
        time.sleep(60)


wait()
