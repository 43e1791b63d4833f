"""The validation images that may judge a trained model: one number is tuned on them, and nothing else has seen them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lfm.data.table import open_table

MIN_IMAGES = 50
"""On fewer images no number is chosen: the noise would be larger than the gain."""


def fresh(dataset: Path) -> NDArray[np.int64]:
    """Positions of validation images that are in no other split, by their bytes: they judge nothing else."""
    own, *others = (list(open_table(dataset, split).column("sha256")) for split in ("val", "train", "test"))
    used = set().union(*others)
    return np.array([row for row, sha in enumerate(own) if sha not in used], np.int64)
