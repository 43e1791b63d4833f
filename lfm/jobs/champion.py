"""The champion of the registry, and what it predicts on the test images of now."""

import dataclasses
import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfm.config.schema import RunConfig
from lfm.data.artifact import read_info
from lfm.data.sources.base import SPLITS
from lfm.data.sources.test_split import kept_from_training
from lfm.data.table import open_table
from lfm.errors import InputError
from lfm.jobs.base import base_of
from lfm.jobs.step import content
from lfm.progress import say
from lfm.storage.artifact import content_key
from lfm.tracking import registration, registry

FITTED = ("size", "interpolation", "resize_mode")
"""What the pixels of a data set were made for; mean and deviation are taken later."""
SAMPLED, DIGITS = 32, 12
"""Images that a version names its data by, and digits of the hash of each."""


@dataclass(frozen=True)
class Champion:
    """A registered model that can be scored on the test images of now.

    Args:
        version: its number.
        content: names its weights.
        uri: as MLflow names it.
    """

    version: str
    content: str
    uri: str

    def predict(self, test: Any, config: RunConfig) -> Any:
        """Class of each test image, (N,); None, with a line that says why, for a model that cannot be loaded any more.

        Args:
            test: `lfm.data.Images`, whose mean and deviation give way to those that the champion was trained with.
            config: precision.
        """
        from lfm.backbones.towers import Preprocess
        from lfm.evaluation.inference import predict_split
        from lfm.serving.predictor import Predictor

        try:
            with tempfile.TemporaryDirectory() as folder:
                model = registration.fetch_model(self.uri, Path(folder))
                predictor = Predictor(model, backbone=base_of(model))
        except InputError as error:  # a retraining must not fail night after night for what it may replace
            say(f"warning: champion {self.version} is not scored: {error}")
            return None
        images = dataclasses.replace(test, to=Preprocess.of(predictor.info["preprocess"]))
        return predict_split(predictor.model.to(test.device), images, config)


def present_champion(name: str, dataset: str) -> Champion | None:
    """The champion of a model, if it knows the classes of this data set and takes its pixels.

    Args:
        name: of the registered model.
        dataset: folder of a data set artifact.
    """
    version = registry.with_alias(name, registry.CHAMPION)
    if version is None:
        return None
    if other_data(version, dataset):
        say(f"{of_other_data(version)}; it is not scored")
        return None
    described = version.tags.get(registry.INPUT)
    if described != input_of(dataset):
        say(f"champion {version.number} of {name} has other classes or takes other pixels; it is not scored")
        return None
    return Champion(version.number, registry.content_of(version), version.uri)


def input_of(dataset: str) -> str:
    """Names what a model of this data set takes and gives: the form of its pixels, and its classes in their order."""
    info = read_info(Path(dataset))
    to = {field: info["preprocess"][field] for field in FITTED}
    made_of = [info["classes"], info["channels"], info["pixels"], to]
    if info.get("depth"):  # the same levels become black and white
        made_of.append({kind: [of["low"], of["high"]] for kind, of in info["depth"].items()})
    return content_key(json.loads(json.dumps(made_of)))


def split_images(dataset: str, split: str) -> str:
    """Names a split of a data set artifact by its images and labels, in their order.

    What the tower makes of the pixels does not count: runs with towers of other sizes answer the same images.

    Args:
        dataset: Folder of the artifact.
        split: Its name, as in `lfm.data.sources.base.SPLITS`.
    """
    table = open_table(Path(dataset), split)
    digest = hashlib.blake2b(digest_size=16)
    for image, label in zip(table.column("sha256"), table.column("label"), strict=True):
        digest.update(f"{image} {label}\n".encode())
    return digest.hexdigest()


def unseen_images(dataset: str, share: float) -> NDArray[np.bool_]:
    """Which test images a model has not trained on that never trains on those below a threshold of hashes. (N,).

    Args:
        dataset: folder of the artifact.
        share: the threshold (`lfm.data.sources.test_split`); 0: nothing is known.
    """
    shas = open_table(Path(dataset), "test").column("sha256").tolist()
    return np.array([kept_from_training(bytes.fromhex(sha), share) for sha in shas], bool)


def _hashes(dataset: str) -> set[str]:
    """The first digits of the sha256 of each image of a data set artifact."""
    tables = [open_table(Path(dataset), split) for split in SPLITS]
    return {sha[:DIGITS] for table in tables for sha in table.column("sha256").tolist()}


def image_sample(dataset: str) -> str:
    """A few of the images by their hashes: the lowest, of which data that only grow keep nearly all."""
    return " ".join(sorted(_hashes(dataset))[:SAMPLED])


def other_data(version: registry.Version, dataset: str) -> bool:
    """Whether a version was trained on other data than these: none of a sample of its images is among them.

    Of a version from before samples were kept nothing is known, and it counts as one of these data.
    """
    sample = set(version.tags.get(registry.SAMPLE, "").split())
    return bool(sample) and sample.isdisjoint(_hashes(dataset))


def of_other_data(version: registry.Version) -> str:
    """What is said of such a version."""
    alias = f"{version.aliases[0]} " if version.aliases else "version "
    sample = len(version.tags[registry.SAMPLE].split())
    return (
        f"{alias}{version.number} of {version.name} was trained on other data: of {sample} of its images none is here"
    )


def say_other_data(name: str, dataset: str) -> None:
    """Tell before training where the registered name has a champion of other data."""
    version = registry.with_alias(name, registry.CHAMPION)
    if version and other_data(version, dataset):
        say(
            f"warning: {of_other_data(version)}. Models of the two are not compared, and both are versions of one "
            f"name; another --home (or tracking server) keeps them apart"
        )


def data_tags(dataset: str) -> dict[str, str]:
    """Tags of runs and versions that name the data set artifact and its images."""
    return {
        registry.TEST_SHARE: f"{read_info(Path(dataset)).get('test_share', 0.0):g}",
        registry.DATASET: content(dataset),
        registry.TRAIN: split_images(dataset, "train"),
        registry.TEST: split_images(dataset, "test"),
        registry.SAMPLE: image_sample(dataset),
    }
