"""A step that writes to MLflow until the disk is full: WHAT, one of tags (the database), texts (artifacts)."""

import sys

from lfm.jobs.step import step
from lfm.tracking import pipeline_run


@step
def fill(what: str) -> None:
    """Write half a megabyte at a time."""
    pipeline_run.begin_pipeline_run("birds", "a run")
    with pipeline_run.step_run("train") as run:
        for number in range(100):
            if what == "tags":
                run.tags({f"tag-{number}-{k}": "x" * 4000 for k in range(50)})
            else:
                run.text("x" * 500_000, f"{number}.txt")


if __name__ == "__main__":
    fill(sys.argv[1])
