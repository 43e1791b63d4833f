"""The reference way of working, for benchmarks/speed.py: stand-ins in our own words, or the authors' own functions.

Letters in the names give shapes: N images, C classes.
"""

import importlib
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torchvision import transforms

from lfm.backbones.towers import DEFAULT

Action = Callable[[], Any]
Pixels = np.ndarray[Any, Any]


def way(part: str, path: Path | None, stand_in: Action, *values: Any) -> tuple[Action, str]:
    """What to time as the reference of a part, and whose it is: "authors' code" or "stand-in".

    Args:
        part: a name of `AUTHORS`.
        path: the authors' repository, if there is one; where it cannot be used the reason is printed.
        stand_in: does the part in the reference's way, in our own words.
        values: what the authors' functions are given.
    """
    if path:
        try:
            action = AUTHORS[part](path, *values)
            action()
            return action, "authors' code"
        except Exception as error:  # whatever another's code raises
            print(f"{part}: {path} is of no use ({type(error).__name__}: {error}); the stand-in is timed instead")
    return stand_in, "stand-in"


# --- stand-ins ---


def partner(p_C: Tensor) -> Action:
    """A partner class for one image: the probabilities of all classes are gone through in Python, then one is drawn."""
    rng = random.Random(0)  # noqa: S311
    return lambda: rng.choices(range(len(p_C)), weights=cast(Any, p_C))


def accuracy(logits_NC: Tensor, label_N: Tensor, group_C: Sequence[str]) -> dict[str, float]:
    """Share of right answers, of all and of each group: image by image into lists, which are stacked again."""
    rows: dict[str, list[tuple[Tensor, Tensor]]] = {"all": []}
    for n in range(len(label_N)):
        rows["all"].append((logits_NC[n], label_N[n]))
        rows.setdefault(group_C[int(label_N[n])], []).append((logits_NC[n], label_N[n]))
    shares = {}
    for name, found in rows.items():
        logits, labels = (torch.stack(column) for column in zip(*found, strict=True))
        shares[name] = float((F.softmax(logits, dim=1).argmax(dim=1) == labels).float().mean())
    return shares


# --- the authors' functions ---
# Each is called on an object that holds just what it reads: their constructors want CUDA, files or other arguments
# from one commit to the next.


def _module(path: Path, name: str) -> Any:
    """A module of their repository, whose files import one another from its root."""
    sys.path.insert(0, str(path))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(path))


def authors_partner(path: Path, p_C: Tensor) -> Action:
    """Class and image of a partner, `LocalClassSampler.get_next_j_sample`; a class has one image here."""
    theirs = _module(path, "data.dataloader")
    sampler = object.__new__(theirs.LocalClassSampler)
    sampler.probability_matrix, sampler.num_classes = [p_C], len(p_C)
    sampler.samplers = [theirs.ResettableSubsetSampler([k]) for k in range(len(p_C))]
    return lambda: sampler.get_next_j_sample(0)


def authors_input(path: Path, pixels: Pixels, pairs: Sequence[tuple[int, int, float]]) -> Action:
    """A batch of mixed images, from `IMBALANCECIFAR100`, `pair_local_samples` and `LocalFeatureMixup.mix`.

    Args:
        path: of the repository.
        pixels: (N, 32, 32, 3) uint8.
        pairs: positions i and j; the weights are theirs to draw.
    """
    dataset = object.__new__(_module(path, "data.ImbalanceCIFAR").IMBALANCECIFAR100)
    dataset.data, dataset.labels, dataset.target_transform = pixels, [n % 100 for n in range(len(pixels))], None
    dataset.transform = transforms.Compose(  # CLIP's, which they use
        [
            transforms.Resize(224, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(DEFAULT.mean, DEFAULT.std),
        ]
    )
    collate = _module(path, "data.dataloader").pair_local_samples
    mixer = _module(path, "mixups").LocalFeatureMixup(1.0, torch.arange(1, 101))

    def batch() -> Any:
        (x_i, x_j), (y_i, y_j), _ = collate([dataset[n] for i, j, _ in pairs for n in (i, j)])
        return mixer.mix(x_i, y_i, x_j, y_j)

    return batch


def authors_accuracy(path: Path, logits_NC: Tensor, label_N: Tensor, group_C: Sequence[str]) -> Action:
    """`Evaluator.accuracy` of all, many, medium and few."""
    evaluator = object.__new__(_module(path, "utils").Evaluator)
    evaluator.class_subdivisions = [group.replace("medium", "med") for group in group_C]
    evaluator.device = 0  # the rank that scores; the tensors stay where they are
    evaluator.get_tensors = lambda: (logits_NC, label_N)
    action: Action = evaluator.accuracy
    return action


AUTHORS: dict[str, Callable[..., Action]] = {
    "partner": authors_partner,
    "input": authors_input,
    "accuracy": authors_accuracy,
}
