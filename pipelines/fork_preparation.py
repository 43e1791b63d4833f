"""What steps would else each do for themselves: done once, in the process that forks them, when this is imported.

No step's result can become another one by it: a source file that changes later is read again.
"""

import atexit
import gc
import importlib

from lfm.pipelines.fork_server import PRELOAD


def prepare() -> None:
    """Import what steps need, read the code that names results, and look up MLflow's schema."""
    gc.disable()  # a quarter of the time of such imports, and nothing that they make is ever given back
    for name in PRELOAD:
        importlib.import_module(name)
    from lfm.jobs import packaging
    from lfm.jobs.evaluation import SCORING
    from lfm.jobs.prepare import DECODING
    from lfm.storage.import_closure import closure
    from lfm.tracking.database import schemas
    from lfm.training.task import METHOD

    closure(*METHOD, *SCORING, DECODING, packaging.__name__)
    schemas()
    gc.freeze()  # else a step's collections go through all of this, and copy the pages that it lies on
    gc.enable()
    atexit.register(gc.unfreeze)  # what is never collected is leaked, as nanobind would say to the user in 30 lines


prepare()
