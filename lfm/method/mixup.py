"""The method: whom an image is mixed with, and where its label goes. One file, to be read with the paper, hence longer.

Source: Franklin et al. 2024, arXiv 2409.03583, in the paper's order: local sampling, mixing, label shift, and the
algorithm that draws training batches with them.

Letters in the names give shapes:
    B images of a batch; C classes; D embedding dimensions; N training images; U classes asked for.

Index i is the first image of a pair, j its partner; n_i, n_j are the training images of their classes.
Everything random is a function of (seed, stage, epoch, step) alone, so that a run can be repeated bit for bit
and a resumed one goes on exactly, whatever the device and the number of processes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lfm.method.draws import beta, generator
from lfm.method.partners import Barred, ChunkPartners, ImagesByClass, PartnerSampler, TablePartners, UniformPartners

if TYPE_CHECKING:  # the method itself needs torch alone
    from lfm.config.schema import MixupConfig

TABLE_CLASSES = 2048
"""Up to this many classes the rows of p_ls are kept as one table of 8 bytes an entry: 32 MB."""


def local_sampling_rows(text_CD: Tensor, class_U: Tensor, tau: float, barred: Barred | None = None) -> Tensor:
    """Partner distribution p_ls(. | y) of some classes (local sampling).

    p_ls(y_j | y_i) = exp(f_Ti . f_Tj / tau) / sum_{k != i} exp(f_Ti . f_Tk / tau) for j != i, and 0 for j = i.

    Args:
        text_CD: class embeddings, rows of unit length.
        class_U: the classes y_i, int64.
        tau: temperature, above 0; infinite: uniform.
        barred: partners with probability 0 as well; ours, not the paper's. Each class needs one that is left.

    Returns:
        (U, C) in float64, rows summing to 1.
    """
    cosine_UC = text_CD[class_U] @ text_CD.T
    scores_UC = cosine_UC.double().div_(tau)
    if barred:
        every_1C = torch.arange(len(text_CD), device=text_CD.device)[None]
        scores_UC.masked_fill_(barred.mask(class_U, every_1C, cosine_UC), -torch.inf)
    scores_UC.scatter_(1, class_U[:, None], -torch.inf)
    return scores_UC.softmax(dim=1)


def uniform_rows(class_U: Tensor, classes: int) -> Tensor:
    """The ablation without text: uniform over the other classes. (U, C) in float64."""
    rows_UC = torch.full((len(class_U), classes), 1 / (classes - 1), dtype=torch.float64, device=class_U.device)
    return rows_UC.scatter_(1, class_U[:, None], 0.0)


def partner_sampler(text_CD: Tensor, tau: float, uniform: bool = False, barred: Barred | None = None) -> PartnerSampler:
    """Draws partner classes from p_ls.

    Args:
        text_CD: class embeddings, rows of unit length, on any device.
        tau: temperature of local sampling.
        uniform: draw uniformly over the other classes instead.
        barred: partners that are never drawn.
    """
    classes = len(text_CD)
    assert classes >= 2, "mixing needs two classes"
    if uniform and not barred:
        return UniformPartners(classes)
    tau = torch.inf if uniform else tau
    rows_of = partial(local_sampling_rows, text_CD, tau=tau, barred=barred)
    if classes <= TABLE_CLASSES:
        return TablePartners(rows_of(torch.arange(classes, device=text_CD.device)))
    return ChunkPartners(text_CD, tau, rows_of, barred)


def mix(image_i: Tensor, image_j: Tensor, lambda_x_B: Tensor) -> Tensor:
    """X = lambda_x x_i + (1 - lambda_x) x_j, for float images of shape (B, ...)."""
    weight = lambda_x_B.to(image_i.dtype).view(-1, *[1] * (image_i.ndim - 1))
    return torch.lerp(image_j, image_i, weight)


def label_shift(lambda_x_B: Tensor, n_i_B: Tensor, n_j_B: Tensor, alpha: float) -> Tensor:
    """Label weight of the first image, shifted to the rarer class (label shift).

    lambda_y = clamp(lambda_x - alpha (n_i - n_j) / (n_i + n_j), 0, 1).

    Args:
        lambda_x_B: weight of the first image in the mix, in [0, 1].
        n_i_B: training images of the first image's class.
        n_j_B: training images of the partner's class.
        alpha: strength; 0 is ordinary mixup.

    Returns:
        (B,) in [0, 1].
    """
    shift_B = (n_i_B - n_j_B) / (n_i_B + n_j_B)
    return (lambda_x_B - alpha * shift_B).clamp(0, 1)


def remix_label(
    lambda_x_B: Tensor, n_i_B: Tensor, n_j_B: Tensor, kappa: float, tau: float, swapped: bool = False
) -> Tensor:
    """Label weight of the first image in Remix (Chou et al. 2020, eq. 5).

    0 where n_i / n_j >= kappa and lambda_x < tau (the first class is the frequent one and weighs little: all
    label to the partner); 1 where n_i / n_j <= 1 / kappa and 1 - lambda_x < tau (the mirror image); else lambda_x.

    Args:
        lambda_x_B: weight of the first image in the mix, in [0, 1].
        n_i_B: training images of the first image's class.
        n_j_B: training images of the partner's class.
        kappa: ratio of training images from which the label moves.
        tau: the label moves where the frequent class's weight is below this.
        swapped: 1 and 0 the other way round, to the more frequent class, as the released code of this paper has it.

    Returns:
        (B,) in [0, 1].
    """
    to_partner_B = (n_i_B >= kappa * n_j_B) & (lambda_x_B < tau)
    to_first_B = (n_j_B >= kappa * n_i_B) & (1 - lambda_x_B < tau)
    return lambda_x_B.masked_fill(to_partner_B, float(swapped)).masked_fill(to_first_B, float(not swapped))


@dataclass(frozen=True)
class PairBatch:
    """A batch of pairs; the images themselves come later."""

    index_B2: Tensor
    """Images i and j, int64 positions in the training set."""
    lambda_x_B: Tensor
    """Weight of image i, float32."""
    label_B2: Tensor
    """Classes y_i and y_j, int64."""
    weight_B2: Tensor
    """Label weights lambda_y and 1 - lambda_y, float32."""
    rng: torch.Generator
    """What comes after in this step (augmentation) draws on from here."""


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images, each once as the first of a pair."""

    key: tuple[int, int, int]
    """Seed, stage and epoch."""
    batch_size: int
    first_N: Tensor
    """Every training image, in the epoch's order."""

    @property
    def steps(self) -> int:
        """Batches, the last of which may be short."""
        return -(-len(self.first_N) // self.batch_size)

    def rng(self, step: int | str) -> torch.Generator:
        """The generator of a step."""
        return generator(*self.key, step)

    def first(self, step: int) -> Tensor:
        """The first images of a step. (B,)."""
        return self.first_N[step * self.batch_size :][: self.batch_size]


class Mixup:
    """Mixup (Zhang et al. 2018): the batch with itself in another order, labels mixed as the images are.

    The other mixups are this one with some of its three answers changed: partner, image weight, label weight.

    Args:
        config: of the mixup.
        alpha: strength of the label shift.
        label_N: class of each training image, int64 on the CPU; every class must occur.
        text_CD: class embeddings, rows of unit length, CPU.
        barred: partners that lfm never draws.
    """

    def __init__(
        self, config: "MixupConfig", alpha: float, label_N: Tensor, text_CD: Tensor, barred: Barred | None = None
    ) -> None:
        self.config, self.alpha, self.label_N, self.text_CD = config, alpha, label_N, text_CD
        self.images = ImagesByClass(label_N, len(text_CD))

    def partner(self, epoch: Epoch, step: int, rng: torch.Generator) -> Tensor:
        """Partner images j of the step's first images. (B,) positions in the training set."""
        i_B = epoch.first(step)
        return i_B[torch.randperm(len(i_B), generator=rng)]

    def image_weight(self, size: int, rng: torch.Generator) -> Tensor:
        """lambda_x ~ Beta(b, b), one a pair or one a batch. (B,) float64."""
        return beta(self.config.beta, 1 if self.config.lambda_per == "batch" else size, rng).expand(size)

    def label_weight(self, lambda_x_B: Tensor, n_i_B: Tensor, n_j_B: Tensor) -> Tensor:
        """lambda_y of the first image's label. (B,) in [0, 1]."""
        return lambda_x_B


class NoMixup(Mixup):
    """Each image whole, with its own label."""

    def partner(self, epoch: Epoch, step: int, rng: torch.Generator) -> Tensor:  # noqa: D102
        return epoch.first(step)

    def image_weight(self, size: int, rng: torch.Generator) -> Tensor:  # noqa: D102
        return torch.ones(size)


class Remix(Mixup):
    """Remix (Chou et al. 2020): Mixup whose label goes to the much rarer class."""

    def label_weight(self, lambda_x_B: Tensor, n_i_B: Tensor, n_j_B: Tensor) -> Tensor:  # noqa: D102
        config = self.config
        swapped = config.remix_branches == "swapped"
        return remix_label(lambda_x_B, n_i_B, n_j_B, config.remix_kappa, config.remix_tau, swapped)


class LocalFeatureMixup(Mixup):
    """LFM (this paper): partners by local sampling, labels by label shift."""

    def __init__(
        self, config: "MixupConfig", alpha: float, label_N: Tensor, text_CD: Tensor, barred: Barred | None = None
    ) -> None:
        super().__init__(config, alpha, label_N, text_CD)
        self.partners = partner_sampler(text_CD, config.tau, config.partner == "uniform", barred)
        self.epoch_partners: tuple[Epoch | None, Tensor] = (None, label_N)

    def partner(self, epoch: Epoch, step: int, rng: torch.Generator) -> Tensor:
        """Algorithm LocalSample: y_j ~ p_ls(. | y_i), then x_j uniform in class y_j, or without replacement."""
        class_B = self._partner_class(epoch.first(step), rng)
        u_B = torch.rand(len(class_B), generator=rng, dtype=torch.float64)
        if self.config.partner_image == "uniform":
            return self.images.uniform(class_B, u_B)
        # The draw of a step depends on those before it in the epoch; they are all made together, so that a resumed
        # epoch sees the same ones.
        of_epoch, j_N = self.epoch_partners
        if of_epoch is not epoch:
            class_N = torch.cat([self._partner_class(epoch.first(s), epoch.rng(s)) for s in range(epoch.steps)])
            j_N = self.images.until_used_up(class_N, epoch.rng("class order"))
            self.epoch_partners = (epoch, j_N)
        return j_N[step * epoch.batch_size :][: len(class_B)]

    def _partner_class(self, i_B: Tensor, rng: torch.Generator) -> Tensor:
        u_B = torch.rand(len(i_B), generator=rng, dtype=torch.float64)
        return self.partners.draw(self.label_N[i_B], u_B)

    def label_weight(self, lambda_x_B: Tensor, n_i_B: Tensor, n_j_B: Tensor) -> Tensor:  # noqa: D102
        return label_shift(lambda_x_B, n_i_B, n_j_B, self.alpha)


MIXUPS: dict[str, type[Mixup]] = {"none": NoMixup, "mixup": Mixup, "remix": Remix, "lfm": LocalFeatureMixup}


class PairSampler:
    """The batches of one stage (the paper's algorithms LocalSample and Mix, or another mixup).

    Args:
        config: of the mixup, `config.name` one of `MIXUPS`.
        label_N: class of each training image, int64 on the CPU; every class must occur.
        text_CD: class embeddings, rows of unit length, CPU.
        alpha: strength of the label shift.
        batch_size: images of a step.
        seed: of the run.
        stage: 1 or 2.
        barred: partners that lfm never draws.
    """

    def __init__(
        self,
        config: "MixupConfig",
        label_N: Tensor,
        text_CD: Tensor,
        *,
        alpha: float,
        batch_size: int,
        seed: int,
        stage: int,
        barred: Barred | None = None,
    ) -> None:
        self.mixup = MIXUPS[config.name](config, alpha, label_N, text_CD, barred)
        self.label_N, self.batch_size, self.key = label_N, batch_size, (seed, stage)
        self.steps_per_epoch = -(-len(label_N) // batch_size)
        self._epoch = self._begin(0)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[PairBatch]:
        """The batches of an epoch, from `first_step` on."""
        return (self.batch(epoch, step) for step in range(first_step, self.steps_per_epoch))

    def batch(self, epoch: int, step: int) -> PairBatch:
        """Batch `step` of `epoch`: each image once an epoch as the first, in an order drawn for the epoch."""
        current = self._epoch if self._epoch.key[2] == epoch else self._begin(epoch)
        self._epoch = current  # read once: another thread may ask for another epoch
        rng, i_B = current.rng(step), current.first(step)
        index_B2 = torch.stack([i_B, self.mixup.partner(current, step, rng)], dim=1)
        label_B2 = self.label_N[index_B2]
        lambda_x_B = self.mixup.image_weight(len(i_B), rng)
        n_i_B, n_j_B = self.mixup.images.count_C[label_B2].unbind(dim=1)
        lambda_y_B = self.mixup.label_weight(lambda_x_B, n_i_B, n_j_B)
        weight_B2 = torch.stack([lambda_y_B, 1 - lambda_y_B], dim=1).float()
        return PairBatch(index_B2, lambda_x_B.float(), label_B2, weight_B2, rng)

    def _begin(self, epoch: int) -> Epoch:
        rng = generator(*self.key, epoch, "order")
        return Epoch((*self.key, epoch), self.batch_size, torch.randperm(len(self.label_N), generator=rng))
