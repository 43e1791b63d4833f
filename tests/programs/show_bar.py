"""Show progress: `show_bar.py direct` from this process, `step` from a step of a local run."""

import sys
import time

from kfp import dsl

from lfm.config.presets import load
from lfm.pipelines.local_run import run_pipeline
from lfm.progress import bar


@dsl.component(base_image="python", install_kfp_package=False)
def work() -> None:
    """A step with progress."""
    import time

    from lfm.progress import bar, say

    say("begins")
    with bar(1000, "work", "pieces") as progress:
        for _ in range(1000):
            time.sleep(0.002)
            progress.update()


@dsl.pipeline
def pipeline() -> None:
    """One step."""
    work()


if sys.argv[1] == "step":
    from contextlib import nullcontext

    from kfp import local

    run_pipeline(pipeline, load("custom-scratch"), runner=lambda _: nullcontext(local.SubprocessRunner(use_venv=False)))
else:
    with bar(1000, "work", "pieces") as progress:
        for _ in range(1000):
            time.sleep(0.002)
            progress.update()
