"""Run forked steps: `forked_pipeline.py ROOT good`; with exit, raise, sleep or a signal, a step does so; many: 120."""

import os
import signal
import sys

from kfp import dsl, local

from lfm.pipelines.fork_server import forked_steps


@dsl.component(base_image="python", install_kfp_package=False)
def show(word: str) -> str:
    """Print what the step sees."""
    import os
    import sys
    from pathlib import Path

    print("pid", os.getpid(), "word", word, "HOME_OF_TEST", os.environ.get("HOME_OF_TEST"), "cwd", Path.cwd())
    print("torch was there:", "torch" in sys.modules, file=sys.stderr)
    return word.upper()


@dsl.component(base_image="python", install_kfp_package=False)
def fail(how: str) -> None:
    """End in the way that is asked for."""
    import os
    import signal
    import time

    if how == "exit":
        raise SystemExit(2)
    if how == "raise":
        raise ValueError("a mistake of ours")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, how))
    if how == "sleep":
        print("sleeping", os.getpid(), flush=True)
        time.sleep(60)


@dsl.pipeline
def good() -> None:
    """Two steps."""
    show(word="one")
    show(word="two")


@dsl.pipeline
def many() -> None:
    """Steps of which some end while others start."""
    with dsl.ParallelFor(list(range(120)), parallelism=6):
        fail(how="not")


@dsl.pipeline
def bad(how: str) -> None:
    """A step that fails."""
    fail(how=how)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores Ctrl-C
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1])
    with forked_steps():
        os.environ["HOME_OF_TEST"] = "set later"
        if sys.argv[2] == "good":
            good()
        else:
            try:
                many() if sys.argv[2] == "many" else bad(how=sys.argv[2])
            except RuntimeError as error:
                print("failed:", error)
