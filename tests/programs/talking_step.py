"""A step that prints inside its MLflow run until nobody reads it: a stage that finishes its step after SIGTERM does."""

import signal
import time

from lfm.jobs.step import step
from lfm.tracking import pipeline_run


@step
def talk() -> None:
    with pipeline_run.step_run("stage 1"):
        signal.signal(signal.SIGTERM, lambda number, frame: None)  # training only notes that it is asked to stop
        while True:
            print("ready", flush=True)
            time.sleep(0.05)


talk()
