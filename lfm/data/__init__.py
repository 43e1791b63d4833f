"""Images and labels: sources, long-tailed subsets, the on-disk artifact, the fast path to the device."""

from collections.abc import Callable

from lfm.config.schema import DataConfig
from lfm.data.artifact import add_pixels, judge, read_info, write
from lfm.data.cifar import load_cifar10, load_cifar100
from lfm.data.custom import load_custom
from lfm.data.fashion_mnist import load_fashion_mnist
from lfm.data.images import Images, open_split
from lfm.data.inaturalist import load_inaturalist2018
from lfm.data.lists import load_imagenet_lt, load_places_lt
from lfm.data.source import Source

# name -> loader of everything but the images themselves
DATASETS: dict[str, Callable[[DataConfig], Source]] = {
    "fashion-mnist": load_fashion_mnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "imagenet-lt": load_imagenet_lt,
    "places-lt": load_places_lt,
    "inaturalist2018": load_inaturalist2018,
    "custom": load_custom,
}
# Their loaders accept the published bytes alone, so the name says what they hold, and an artifact that is there
# already needs no look at the files.
CHECKSUMMED = frozenset({"fashion-mnist", "cifar10", "cifar100"})

__all__ = ["CHECKSUMMED", "DATASETS", "Images", "Source", "add_pixels", "judge", "open_split", "read_info", "write"]
