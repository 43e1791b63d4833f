"""The data sets there are, by name. A loader is imported when its data set is asked for, and no other."""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, cast

from lfm.errors import unknown

if TYPE_CHECKING:
    from lfm.config.schema import DataConfig
    from lfm.data.sources.base import Source


class Loader(NamedTuple):
    """Where a data set's loader is: a function that takes the configuration and reads all but the images."""

    module: str
    """Dotted name."""
    function: str
    """Its name there."""
    published_only: bool = False
    """It accepts the published bytes alone (unless `data.verify` is off), so the name says what the data hold, and an
    artifact that is there already needs no look at the files."""


DATASETS: dict[str, Loader] = {
    "fashion-mnist": Loader("lfm.data.sources.fashion_mnist", "load_fashion_mnist", published_only=True),
    "cifar10": Loader("lfm.data.sources.cifar", "load_cifar10", published_only=True),
    "cifar100": Loader("lfm.data.sources.cifar", "load_cifar100", published_only=True),
    "imagenet-lt": Loader("lfm.data.sources.split_lists", "load_imagenet_lt"),
    "places-lt": Loader("lfm.data.sources.split_lists", "load_places_lt"),
    "inaturalist2018": Loader("lfm.data.sources.inaturalist", "load_inaturalist2018"),
    "icons-lt": Loader("lfm.data.sources.icons", "load_icons"),
    "custom": Loader("lfm.data.sources.custom", "load_custom"),
}


def loader_of(name: str) -> Loader:
    """The loader of a data set.

    Raises:
        InputError: there is no such data set; the nearest name is given.
    """
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    return DATASETS[name]


def load(config: "DataConfig") -> "Source":
    """Where each image of a data set is, its class and its split. No image is read yet.

    Raises:
        InputError: there is no such data set, or its files are missing or wrong.
    """
    loader = loader_of(config.name)
    function = getattr(importlib.import_module(loader.module), loader.function)
    return cast("Callable[[DataConfig], Source]", function)(config)
