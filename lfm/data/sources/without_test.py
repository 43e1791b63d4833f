"""Classes that have no test images: refused, left out or trained without a score, as `data.without_test` says."""

import dataclasses

import numpy as np

from lfm.config.schema import DataConfig
from lfm.data.sources.base import TEST, TRAIN, Chosen, Source
from lfm.data.sources.image_listing import first_few
from lfm.errors import InputError, counted
from lfm.progress import say


def settle(config: DataConfig, source: Source) -> Source:
    """The source with what `config.without_test` says of classes without test images.

    Raises:
        InputError: there are such classes, and it says refuse.
    """
    train_C, test_C = (
        np.bincount(source.label_N[source.split_N == split], minlength=len(source.classes)) for split in (TRAIN, TEST)
    )
    lone = np.flatnonzero((test_C == 0) & (train_C > 0))
    if not len(lone):
        return source
    names = first_few([f"{source.classes[k]} ({train_C[k]:,})" for k in lone])
    what = (
        f"{counted(len(lone), 'class has', 'classes have')} no test images ({names}, in brackets their training images)"
    )
    them = "it" if len(lone) == 1 else "them"
    if config.without_test == "keep":
        say(f"warning: {what}; {'it is' if len(lone) == 1 else 'they are'} trained, and no score counts {them}")
        return dataclasses.replace(source, without_test=True)
    if config.without_test == "leave-out":
        say(f"warning: {what}; {'it is' if len(lone) == 1 else 'they are'} left out: a model will not know {them}")
        return without(source, set(lone.tolist()))
    if source.test_share:
        what += (
            "; a class gives some only if it keeps one, copies of an image stay together, and those that two classes "
            "or splits share stay where they are"
        )
    raise InputError(
        f"{what}; add images, or set data.without_test=leave-out to leave {them} out, or =keep to train and not "
        f"score {them}"
    )


def without(source: Source, left_out: set[int]) -> Source:
    """The source without some classes and their images; the others are numbered again."""
    kept = [k for k in range(len(source.classes)) if k not in left_out]
    number_C = np.full(len(source.classes), -1)
    number_C[kept] = np.arange(len(kept))
    place_N = np.flatnonzero(number_C[source.label_N] >= 0)
    return dataclasses.replace(
        source,
        images=Chosen(source.images, place_N),
        label_N=number_C[source.label_N[place_N]],
        split_N=source.split_N[place_N],
        classes=tuple(source.classes[k] for k in kept),
    )
