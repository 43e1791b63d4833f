"""The data sets there are, by name."""

from collections.abc import Callable

from lfm.config.schema import DataConfig
from lfm.data.sources.base import Source
from lfm.data.sources.cifar import load_cifar10, load_cifar100
from lfm.data.sources.custom import load_custom
from lfm.data.sources.fashion_mnist import load_fashion_mnist
from lfm.data.sources.inaturalist import load_inaturalist2018
from lfm.data.sources.split_lists import load_imagenet_lt, load_places_lt

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
