"""In which shares the classes come where a model is asked, and what that makes of its answers.

A model's probabilities stand for the class shares pi that training left in them. Where the classes come in shares q,
Bayes' rule gives p(y | x) ~ exp(z_y / T) q_y / pi_y (Saerens, Latinne and Decaestecker 2002, eq. 2.4). q may be the
training images' shares, even, told by class, or estimated from the images themselves.

Letters in the names give shapes: N images, C classes.
"""

import csv
import difflib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lfm.errors import InputError, counted

NONE, TRAIN, UNIFORM, AUTO = WORDS = ("none", "train", "uniform", "auto")
Prior = str | Mapping[str, float]
"""One of `WORDS` (empty is none), or a share for each class."""
ITERATIONS = 1000
CLOSE = 1e-5
"""Nats per image by which the likelihood of an estimate could rise at most, where it counts as found."""
IMAGES_PER_CLASS = 10
"""With fewer images for each class of the model an estimate is rough."""
NOT_FITTED = (
    "this model had too few validation images to fit the class shares that it stands for, so the estimate takes those "
    "of its training, and may be far off where the model mistakes one class for another"
)
SHOWN = 100
"""Shares that an answer shows at most, the largest."""


@dataclass(frozen=True)
class Shares:
    """Class shares to answer for.

    Args:
        share_C: q, float64, adding up to 1.
        estimated: they were estimated from the images asked about.
        warnings: what is doubtful about the estimate.
    """

    share_C: Tensor
    estimated: bool = False
    warnings: tuple[str, ...] = ()

    def named(self, classes: Sequence[str]) -> dict[str, float]:
        """The largest `SHOWN` shares by class, the largest first, in four digits."""
        top = self.share_C.topk(min(SHOWN, len(classes)))
        return {classes[k]: float(f"{v:.4g}") for k, v in zip(top.indices.tolist(), top.values.tolist(), strict=True)}


def estimate(log_likelihood_NC: Tensor, start_C: Tensor) -> Shares:
    """The shares under which the images are likeliest, by expectation maximisation (Saerens et al. 2002, eq. 2.9).

    With f_n(y) the likelihood of image n in class y, a step multiplies q_y by g_y = mean_n f_n(y) / sum_k q_k f_n(k),
    its mean posterior over its share. The likelihood is concave in q, so that max g - 1 bounds what is left to gain.

    Args:
        log_likelihood_NC: log f, up to a constant for each image.
        start_C: shares to begin with, all above 0.
    """
    likely_NC = (log_likelihood_NC - log_likelihood_NC.max(dim=1, keepdim=True).values).double().exp()
    images, classes = likely_NC.shape
    share_C, left = start_C.double(), math.inf
    for _ in range(ITERATIONS):
        gain_C = (1 / (likely_NC @ share_C)) @ likely_NC / images
        left = float(gain_C.max()) - 1
        if left <= CLOSE:
            break
        share_C = share_C * gain_C
    warnings = []
    if images < IMAGES_PER_CLASS * classes:
        warnings.append(
            f"the class shares were estimated from {counted(images, 'image')}, and {classes:,} classes want "
            f"{IMAGES_PER_CLASS * classes:,} or more ({IMAGES_PER_CLASS} a class): take them for a rough guess"
        )
    if left > CLOSE:
        warnings.append(
            f"the estimate of the class shares has not settled after {ITERATIONS:,} steps: up to {left:.2g} nats per "
            f"image could still be gained, where {CLOSE:g} counts as settled; give the shares if you know them"
        )
    return Shares(share_C / share_C.sum(), True, tuple(warnings))


@dataclass(frozen=True)
class Own:
    """What a model's cosines stand for.

    Args:
        classes: names.
        counts: training images of each.
        prior: pi, class shares; None for a model of a version that did not keep them.
        temperature: T, which goes with pi.
        fitted: pi and T were fitted on validation images; else they are those of training.
    """

    classes: Sequence[str]
    counts: Sequence[int]
    prior: Sequence[float] | None
    temperature: float
    fitted: bool

    @classmethod
    def of(cls, info: Mapping[str, Any], fitted: Mapping[str, Any] | None) -> "Own":
        """From info.json, and what served.json has under `shift`."""
        best = fitted or info
        return cls(info["classes"], info["counts"], best.get("prior"), float(best["temperature"]), bool(fitted))

    @property
    def prior_C(self) -> Tensor:
        """The class shares as float64.

        Raises:
            InputError: the model does not know them.
        """
        if self.prior is None:
            raise InputError("this model does not say which class shares it stands for; register it again with lfm run")
        return torch.tensor(self.prior, dtype=torch.float64)

    def told(self, given: Prior) -> Shares | None:
        """The class shares that a prior names; None where it names none, or they are to be estimated.

        Raises:
            InputError: they do not fit the model's classes, or it does not know its own.
        """
        if given in ("", NONE):
            return None
        assert len(self.prior_C) == len(self.classes)
        if given == AUTO:
            return None
        if isinstance(given, str):
            counts = {TRAIN: self.counts, UNIFORM: [1] * len(self.classes)}[given]
            given = dict(zip(self.classes, counts, strict=True))
        return Shares(shares_of(given, self.classes))

    def shares(self, given: Prior, cosine_NC: Tensor) -> Shares | None:
        """The class shares to answer for; None: the model's own, nothing is shifted.

        Args:
            given: one of `WORDS`, or a share for each class.
            cosine_NC: of all images that are asked about together, to the model's classes.

        Raises:
            InputError: as `told`.
        """
        if given != AUTO:
            return self.told(given)
        found = estimate(cosine_NC / self.temperature - self.prior_C.log().float(), self.prior_C)
        return found if self.fitted else replace(found, warnings=(*found.warnings, NOT_FITTED))

    def shifted(self, cosine_NC: Tensor, shares: Shares) -> Tensor:
        """Logits for these class shares, of the model's classes and perhaps new ones after them. (N, C).

        A new class counts as having the mean share, in the model as where it is asked, so its logit is not shifted.
        """
        shift_C = (shares.share_C / self.prior_C).log().float()
        return cosine_NC / self.temperature + F.pad(shift_C, (0, cosine_NC.shape[1] - len(shift_C)))


def parsed(text: str) -> Prior:
    """A prior as text: one of `WORDS`, or a JSON object of class shares.

    Raises:
        InputError: it is neither.
    """
    if not text or text in WORDS:
        return text
    if not text.lstrip().startswith("{"):
        raise InputError(f"prior {text[:40]!r} is none of {', '.join(WORDS)}, nor a JSON object {{class: share}}")
    return _of_json(text, "prior")


def read(text: str) -> Prior:
    """A prior as a command line gives it: one of `WORDS`, or a file of class shares, JSON or CSV.

    Raises:
        InputError: no such file, or it holds no shares.
    """
    if not text or text in WORDS:
        return text
    path = Path(text).expanduser()
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--prior {text} is none of {', '.join(WORDS)}, nor a file that can be read ({error})"
        ) from error
    return _of_json(content, str(path)) if content.lstrip().startswith("{") else _of_csv(content, str(path))


def shares_of(given: Mapping[str, Any], classes: Sequence[str]) -> Tensor:
    """Class shares in the order of the classes, adding up to 1. (C,) float64.

    Args:
        given: class -> share, or a number of images: only the ratios count.
        classes: of the model; each is to be named.

    Raises:
        InputError: a name that is no class, a class that is left out, a share that is no number of 0 or more, or all 0.
    """
    place = {name: k for k, name in enumerate(classes)}
    if stranger := next((name for name in given if name not in place), ""):
        near = difflib.get_close_matches(stranger[:60], classes, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else "write the names as the model's answers do"
        raise InputError(f"the prior names {stranger[:60]!r}, which is no class of the model; {hint}")
    if lacking := [name for name in classes if name not in given]:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise InputError(f"the prior lacks {', '.join(lacking[:3])}{more}; give every class a share, 0 for none")
    for name, share in given.items():
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if not number or not math.isfinite(share) or share < 0:
            raise InputError(f"the prior's share of {name[:60]!r} is {str(share)[:20]}; give a number of 0 or more")
    total = math.fsum(given.values())
    if not 0 < total < math.inf:
        raise InputError(f"the prior's shares add up to {total:g}; give at least one above 0")
    return torch.tensor([given[name] / total for name in classes], dtype=torch.float64)


def _of_json(text: str, place: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return _each_once(pairs, place)

    try:
        found = json.loads(text, object_pairs_hook=once)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{place} is no JSON object {{class: share}}: {error}") from error
    assert isinstance(found, dict), "it begins with a brace"
    return found


def _of_csv(text: str, place: str) -> dict[str, Any]:
    """Rows of class and share, with or without a heading."""
    rows = [row for row in csv.reader(io.StringIO(text)) if any(cell.strip() for cell in row)]
    pairs: list[tuple[str, Any]] = []
    for number, row in enumerate(rows):
        if len(row) != 2:
            raise InputError(f"{place} has a row of {len(row)} cells ({','.join(row)[:60]}); write class,share")
        try:
            pairs.append((row[0].strip(), float(row[1])))
        except ValueError as error:
            if number:
                raise InputError(f"{place} has no number in {','.join(row)[:60]!r}; write class,share") from error
    if not pairs:
        raise InputError(f"{place} holds no class shares; write JSON {{class: share}}, or rows of class,share")
    return _each_once(pairs, place)


def _each_once(pairs: Sequence[tuple[str, Any]], place: str) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{place} names {twice[:60]!r} more than once; give each class one share")
    return found
