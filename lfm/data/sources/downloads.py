"""The raw files of the published data sets: what to fetch, from whom, and where to put it."""

from collections.abc import Iterable
from pathlib import Path

from lfm.config.schema import DataConfig
from lfm.errors import InputError, unknown
from lfm.storage.artifact import home

# What to fetch, and from whom. The folder and the options follow in `where_to_put`.
HELP: dict[str, str] = {
    "fashion-mnist": "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
    "t10k-labels-idx1-ubyte.gz of Fashion-MNIST (https://github.com/zalandoresearch/fashion-mnist)",
    "icons-lt": "icons.npy and icons.json, as `lfm data fetch icons-lt` builds them on a machine with Debian 12,",
    "cifar10": "cifar-10-python.tar.gz (or cifar-10-binary.tar.gz, or the unpacked folder of either) of CIFAR-10 "
    "(https://www.cs.toronto.edu/~kriz/cifar.html)",
    "cifar100": "cifar-100-python.tar.gz (or cifar-100-binary.tar.gz, or the unpacked folder of either) of CIFAR-100 "
    "(https://www.cs.toronto.edu/~kriz/cifar.html)",
    "imagenet-lt": "ImageNet_LT_train.txt, ImageNet_LT_val.txt and ImageNet_LT_test.txt of OpenLongTailRecognition "
    "(https://github.com/zhmiao/OpenLongTailRecognition-OLTR), and the train and val images of ImageNet ILSVRC 2012 "
    "(https://image-net.org) in the folders that the lists name",
    "places-lt": "Places_LT_train.txt, Places_LT_val.txt and Places_LT_test.txt of OpenLongTailRecognition "
    "(https://github.com/zhmiao/OpenLongTailRecognition-OLTR), categories_places365.txt if at hand, and the images of "
    "Places365-Standard (http://places2.csail.mit.edu) in the folders that the lists name",
    "inaturalist2018": "train2018.json, val2018.json, categories.json (the names of the species) and the folder "
    "train_val2018 of the iNaturalist 2018 competition (https://github.com/visipedia/inat_comp/tree/master/2018)",
}
FOLDERS = {"cifar10": "cifar-10", "cifar100": "cifar-100"}  # below the downloads, where it is not the name
WITH_IMAGES = ("imagenet-lt", "places-lt", "inaturalist2018")


def downloads(name: str) -> Path:
    """Where the raw files of a data set lie if `data.source` names no folder."""
    return home() / "downloads" / FOLDERS.get(name, name)


def where_to_put(name: str) -> str:
    """Which files of a data set go into which folder, and which option names another; one sentence.

    Raises:
        InputError: no such data set.
    """
    if name not in HELP:
        raise unknown("data set", name, HELP)
    images = "; images elsewhere: set data.images to the folder their paths start from" if name in WITH_IMAGES else ""
    return f"put {HELP[name]} into {downloads(name)}, or set data.source to their folder{images}"


def download_again(name: str) -> str:
    """The fix that an error about a damaged or altered file names."""
    return f"download it again: {where_to_put(name)}"


def require(config: DataConfig, name: str, files: Iterable[str]) -> list[Path]:
    """The files of a data set, in `config.source` or in its folder below the downloads.

    Raises:
        InputError: some are not there; all of them are named, and what to put where.
    """
    folder = Path(config.source) if config.source else downloads(name)
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise InputError(f"{folder} has no {' and no '.join(missing)}; {where_to_put(name)}")
    return [folder / file for file in files]
