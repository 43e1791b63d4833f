"""Images and labels: sources, long-tailed subsets, the on-disk artifact."""

from collections.abc import Callable

from lfm.data.artifact import Images, open_split, read_info, write
from lfm.data.fashion_mnist import load_fashion_mnist
from lfm.data.source import Source

# name -> loader(folder of the raw files, "" to fetch them)
DATASETS: dict[str, Callable[[str], Source]] = {"fashion-mnist": load_fashion_mnist}

__all__ = ["DATASETS", "Images", "Source", "open_split", "read_info", "write"]
