"""One thin Kubeflow component per step: typed artifacts in and out, then one import and one call.

KFP ships a component's function body alone to the step, so imports stay inside it.
"""

from lfm.revision import image

# Named by compiled pipelines; a local run uses the current environment instead.
IMAGE = image()
