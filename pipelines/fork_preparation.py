"""What steps would else each work out for themselves: done once, in the process that forks them, when this is imported.

No step's result can become another one by it: a source file that changes later is read again.
"""

import gc

from lfm.jobs import packaging
from lfm.jobs.evaluation import SCORING
from lfm.jobs.prepare import DECODING
from lfm.storage.import_closure import closure
from lfm.tracking.database import schemas
from lfm.training.task import METHOD

schemas()  # each step that opens the SQLite file compares its version with them
closure(*METHOD, *SCORING, DECODING, packaging.__name__)  # the code that names results
gc.collect()
gc.freeze()  # else a step's collections go through all of this, and copy the pages that it lies on
