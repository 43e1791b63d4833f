"""One thin Kubeflow component per step: typed artifacts in and out, then one import and one call.

KFP ships a component's function body alone to the step, so imports stay inside it.
"""

import os

from lfm import __version__

# Named by compiled pipelines; a local run uses the current environment instead.
IMAGE = os.environ.get("LFM_IMAGE", f"lfm-python:{__version__}")
