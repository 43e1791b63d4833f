"""The method: whom an image is mixed with, and where its label goes (paper.md sections 3 and 4).

Letters in the names give shapes:
    B images of a batch; C classes; D embedding dimensions; N training images; U distinct classes asked for.

Index i is the first image of a pair, j its partner; n_i, n_j are the training images of their classes.
Everything random is a function of (seed, stage, epoch, step) alone, so that a run can be repeated bit for bit
and a resumed one goes on exactly, whatever the device and the number of processes.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

# Rows of p_ls are kept as one cumulative table up to this many classes (8 bytes an entry: 32 MB). Beyond, they pass by
# in pieces of at most `SCRATCH_ENTRIES` entries (4 MB), of which only the mass of each chunk of `CHUNK` is kept.
TABLE_CLASSES = 2048
SCRATCH_ENTRIES = 2**20
CHUNK = 128


def local_sampling_rows(text_CD: Tensor, class_U: Tensor, tau: float) -> Tensor:
    """Partner distribution p_ls(. | y) of some classes (section 3).

    p_ls(y_j | y_i) = exp(f_Ti . f_Tj / tau) / sum_{k != i} exp(f_Ti . f_Tk / tau) for j != i, and 0 for j = i.

    Args:
        text_CD: class embeddings, rows of unit length.
        class_U: the classes y_i, int64.
        tau: temperature, above 0.

    Returns:
        (U, C) in float64, rows summing to 1.
    """
    scores_UC = (text_CD[class_U] @ text_CD.T).double() / tau
    scores_UC.scatter_(1, class_U[:, None], -torch.inf)
    return scores_UC.softmax(dim=1)


def uniform_rows(class_U: Tensor, classes: int) -> Tensor:
    """The ablation without text: uniform over the other classes. (U, C) in float64."""
    rows_UC = torch.full((len(class_U), classes), 1 / (classes - 1), dtype=torch.float64, device=class_U.device)
    return rows_UC.scatter_(1, class_U[:, None], 0.0)


def label_shift(lambda_x_B: Tensor, n_i_B: Tensor, n_j_B: Tensor, alpha: float) -> Tensor:
    """Label weight of the first image, shifted to the rarer class (section 4).

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


def remix_label(lambda_x_B: Tensor, n_i_B: Tensor, n_j_B: Tensor, kappa: float, tau: float) -> Tensor:
    """Label weight of the first image in Remix (Chou et al. 2020, eq. 5).

    0 where n_i / n_j >= kappa and lambda_x < tau (the first class is the frequent one and weighs little: all
    label to the partner); 1 where n_i / n_j <= 1 / kappa and 1 - lambda_x < tau (the mirror image); else lambda_x.

    Returns:
        (B,) in [0, 1].
    """
    to_partner_B = (n_i_B >= kappa * n_j_B) & (lambda_x_B < tau)
    to_first_B = (n_j_B >= kappa * n_i_B) & (1 - lambda_x_B < tau)
    return lambda_x_B.masked_fill(to_partner_B, 0.0).masked_fill(to_first_B, 1.0)


def mix(image_i: Tensor, image_j: Tensor, lambda_x_B: Tensor) -> Tensor:
    """X = lambda_x x_i + (1 - lambda_x) x_j (section 4), for float images of shape (B, ...)."""
    weight = lambda_x_B.to(image_i.dtype).view(-1, *[1] * (image_i.ndim - 1))
    return torch.lerp(image_j, image_i, weight)


def generator(*key: int | str) -> torch.Generator:
    """A CPU random generator that is a function of its key alone."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))


def beta(b: float, shape: int, rng: torch.Generator) -> Tensor:
    """Draws from Beta(b, b), float64.

    The draw behind torch.distributions.Beta, called directly because only it takes a generator.
    """
    drawn: Tensor = torch._sample_dirichlet(torch.full((shape, 2), b, dtype=torch.float64), generator=rng)
    return drawn[:, 0]


class PartnerSampler:
    """Draws partner classes from p_ls by inversion: the first class whose cumulative mass exceeds u.

    Up to `table_classes` classes the cumulative rows are computed once. Beyond, each draw first finds the chunk of
    classes that u falls into, from the chunks' masses, then the class inside it; the rows themselves are never held.
    Both give the same class for the same u, but for the rare u that falls into the rounding of float32 cosines.

    Args:
        text_CD: class embeddings, rows of unit length, on any device.
        tau: temperature of local sampling.
        uniform: draw uniformly over the other classes instead.
        table_classes: largest C for which the table is kept.
    """

    def __init__(self, text_CD: Tensor, tau: float, uniform: bool = False, table_classes: int = TABLE_CLASSES) -> None:
        self.text_CD, self.tau, self.uniform = text_CD, tau, uniform
        classes = len(text_CD)
        assert classes >= 2, "mixing needs two classes"
        self.table = None
        if classes <= table_classes and not uniform:
            rows_CC = local_sampling_rows(text_CD, torch.arange(classes, device=text_CD.device), tau)
            self.table = _end_to_end(rows_CC)

    def draw(self, class_B: Tensor, u_BK: Tensor) -> Tensor:
        """Partner classes, never the class itself.

        Args:
            class_B: the first images' classes.
            u_BK: uniform draws in [0, 1), float64, K for each class.

        Returns:
            (B, K) int64.
        """
        classes = len(self.text_CD)
        if self.uniform:
            other_BK = (u_BK * (classes - 1)).long().clamp_(max=classes - 2)
            return other_BK + (other_BK >= class_B[:, None])
        u_BK = u_BK.clamp(max=1 - 1e-9)  # u + r must not round up into the next row
        if self.table is not None:
            return _invert(self.table, class_B, u_BK, classes)
        distinct_U, row_B = class_B.unique(return_inverse=True)
        # p of each chunk (M of them), end to end: rows of float64, a hundredth of the size of p_ls.
        mass_UM = self._chunk_logs(distinct_U).double().softmax(dim=1)
        ends_UM = _end_to_end(mass_UM)
        chunk_BK = _invert(ends_UM, row_B, u_BK, mass_UM.shape[1])
        # How far u lies into its chunk, as a share of the chunk's mass.
        place_BK = row_B[:, None] * mass_UM.shape[1] + chunk_BK
        begin_BK = torch.where(chunk_BK > 0, ends_UM[(place_BK - 1).clamp(min=0)] - row_B[:, None], 0)
        share_BK = (u_BK - begin_BK) / (ends_UM[place_BK] - row_B[:, None] - begin_BK)
        return self._in_chunk(class_B, chunk_BK, share_BK.clamp(0, 1 - 1e-9))

    def _logits(self, class_U: Tensor, start: int, stop: int) -> Tensor:
        """(f_Ti . f_Tj - 1) / tau of the classes [start, stop), minus infinity for the class itself. (U, W)."""
        logit_UW = (self.text_CD[class_U] @ self.text_CD[start:stop].T).sub_(1).div_(self.tau)
        own_UW = class_U[:, None] == torch.arange(start, stop, device=class_U.device)
        return logit_UW.masked_fill_(own_UW, -torch.inf)

    def _chunk_logs(self, class_U: Tensor) -> Tensor:
        """Logarithm of each chunk's mass, not normalised. (U, M)."""
        classes = len(self.text_CD)
        log_UM = torch.empty(len(class_U), -(-classes // CHUNK), dtype=self.text_CD.dtype, device=self.text_CD.device)
        wide = max(1, SCRATCH_ENTRIES // len(class_U) // CHUNK) * CHUNK
        for start in range(0, classes, wide):
            logit_UW = self._logits(class_U, start, min(start + wide, classes))
            logit_UW = F.pad(logit_UW, (0, -logit_UW.shape[1] % CHUNK), value=-torch.inf)
            chunked = logit_UW.view(len(class_U), -1, CHUNK)
            log_UM[:, start // CHUNK : start // CHUNK + chunked.shape[1]] = chunked.logsumexp(dim=2)
        return log_UM

    def _in_chunk(self, class_B: Tensor, chunk_BK: Tensor, share_BK: Tensor) -> Tensor:
        """The class inside each draw's chunk; one product for all the draws of a chunk."""
        order = chunk_BK.flatten().argsort()
        class_P = class_B[:, None].expand_as(chunk_BK).flatten()[order]
        found_P, counts = chunk_BK.flatten()[order].unique_consecutive(return_counts=True)
        share_P, partner_P = share_BK.flatten()[order], torch.empty_like(order)
        begin = 0
        for chunk, count in zip(found_P.tolist(), counts.tolist(), strict=True):
            here = slice(begin, begin + count)
            start, stop = chunk * CHUNK, min((chunk + 1) * CHUNK, len(self.text_CD))
            rows = self._logits(class_P[here], start, stop).double().softmax(dim=1)
            row = torch.arange(count, device=rows.device)
            partner_P[here] = start + _invert(_end_to_end(rows), row, share_P[here, None], stop - start)[:, 0]
            begin += count
        return torch.empty_like(order).scatter_(0, order, partner_P).view_as(chunk_BK)


def _end_to_end(rows_UC: Tensor) -> Tensor:
    """Cumulative rows laid end to end, row r in [r, r + 1], so that one search serves every row. (U * C,)."""
    ends_UC = rows_UC.cumsum(dim=1)
    # Divided by its last entry a row ends in exactly 1, above every u. The class itself adds no mass, so no u falls on
    # it.
    ends_UC.div_(ends_UC[:, -1:].clone())
    return ends_UC.add_(torch.arange(len(rows_UC), device=rows_UC.device)[:, None]).flatten()


def _invert(ends: Tensor, row_B: Tensor, u_BK: Tensor, classes: int) -> Tensor:
    place_BK = torch.searchsorted(ends, u_BK + row_B[:, None], right=True)
    return place_BK - row_B[:, None] * classes


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


class PairSampler:
    """The batches of one stage (section 5, LocalSample and Mix; the baselines beside it).

    Args:
        label_N: class of each training image, int64 on the CPU; every class must occur.
        text_CD: class embeddings, rows of unit length, CPU.
        name: "none", "mixup", "remix" or "lfm".
        alpha: strength of the label shift of lfm.
        tau: temperature of local sampling.
        batch_size: images of a step.
        seed: of the run.
        stage: 1 or 2.
        uniform_partner: lfm with a uniform partner class.
        until_used_up: partner images without replacement in their class until it is used up, over an epoch.
        b: lambda_x ~ Beta(b, b).
        per_batch: one lambda_x for the whole batch.
        remix_kappa: kappa of `remix_label`.
        remix_tau: tau of `remix_label`.
    """

    def __init__(
        self,
        label_N: Tensor,
        text_CD: Tensor,
        *,
        name: str,
        alpha: float,
        tau: float,
        batch_size: int,
        seed: int,
        stage: int,
        uniform_partner: bool = False,
        until_used_up: bool = False,
        b: float = 0.5,
        per_batch: bool = False,
        remix_kappa: float = 3.0,
        remix_tau: float = 0.5,
    ) -> None:
        self.label_N, self.name, self.alpha, self.batch_size = label_N, name, alpha, batch_size
        self.seed, self.stage, self.b, self.per_batch = seed, stage, b, per_batch
        self.remix_kappa, self.remix_tau, self.until_used_up = remix_kappa, remix_tau, until_used_up
        self.count_C = label_N.bincount(minlength=len(text_CD))
        assert self.count_C.min() > 0, "every class needs an image"
        self.by_class_N = label_N.argsort(stable=True)
        self.start_C = self.count_C.cumsum(0) - self.count_C
        self.partners = PartnerSampler(text_CD, tau, uniform_partner) if name == "lfm" else None
        self.steps_per_epoch = -(-len(label_N) // batch_size)
        self._order: tuple[int, Tensor] = (-1, label_N)
        self._drawn: tuple[int, Tensor] = (-1, label_N)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[PairBatch]:
        """The batches of an epoch, from `first_step` on."""
        return (self.batch(epoch, step) for step in range(first_step, self.steps_per_epoch))

    def batch(self, epoch: int, step: int) -> PairBatch:
        """Batch `step` of `epoch`: each image once an epoch as the first, in an order drawn for the epoch."""
        rng = generator(self.seed, self.stage, epoch, step)
        i_B = self._first(epoch, step)
        label_i_B = self.label_N[i_B]
        if self.name == "none":
            one_B = torch.ones(len(i_B))
            weight_B2 = torch.stack([one_B, torch.zeros(len(i_B))], dim=1)
            return PairBatch(i_B[:, None].expand(-1, 2), one_B, label_i_B[:, None].expand(-1, 2), weight_B2, rng)
        j_B = self._partner(i_B, epoch, step, rng)
        label_j_B = self.label_N[j_B]
        lambda_x_B = beta(self.b, 1 if self.per_batch else len(i_B), rng).expand(len(i_B))
        lambda_y_B = self._label_weight(lambda_x_B, self.count_C[label_i_B], self.count_C[label_j_B])
        return PairBatch(
            torch.stack([i_B, j_B], dim=1),
            lambda_x_B.float(),
            torch.stack([label_i_B, label_j_B], dim=1),
            torch.stack([lambda_y_B, 1 - lambda_y_B], dim=1).float(),
            rng,
        )

    def _first(self, epoch: int, step: int) -> Tensor:
        if self._order[0] != epoch:
            rng = generator(self.seed, self.stage, epoch, "order")
            self._order = (epoch, torch.randperm(len(self.label_N), generator=rng))
        return self._order[1][step * self.batch_size : (step + 1) * self.batch_size]

    def _partner(self, i_B: Tensor, epoch: int, step: int, rng: torch.Generator) -> Tensor:
        if self.partners is None:  # Mixup and Remix: the batch in another order
            return i_B[torch.randperm(len(i_B), generator=rng)]
        class_B = self._partner_class(self.label_N[i_B], rng)
        u_B = torch.rand(len(i_B), generator=rng, dtype=torch.float64)
        if self.until_used_up:
            return self._epoch_partners(epoch)[step * self.batch_size :][: len(i_B)]
        rank_B = (u_B * self.count_C[class_B]).long()
        return self.by_class_N[self.start_C[class_B] + rank_B]

    def _partner_class(self, class_B: Tensor, rng: torch.Generator) -> Tensor:
        assert self.partners is not None
        return self.partners.draw(class_B, torch.rand(len(class_B), 1, generator=rng, dtype=torch.float64))[:, 0]

    def _epoch_partners(self, epoch: int) -> Tensor:
        """Partner images of a whole epoch, each class gone through in random order, again and again.

        The draw of a step depends on those before it in the epoch; they are all made together, so that a
        resumed epoch sees the same ones.
        """
        if self._drawn[0] == epoch:
            return self._drawn[1]
        class_N = torch.cat(
            [
                self._partner_class(
                    self.label_N[self._first(epoch, step)], generator(self.seed, self.stage, epoch, step)
                )
                for step in range(self.steps_per_epoch)
            ]
        )
        draws_C = class_N.bincount(minlength=len(self.count_C))
        rounds_C = -(-draws_C // self.count_C)  # how often each class is gone through, rounded up
        # One block a class: its images, `rounds` times over, those of a round in random order.
        size_C = rounds_C * self.count_C
        block_C = size_C.cumsum(0) - size_C
        class_P = torch.repeat_interleave(torch.arange(len(size_C)), size_C)
        place_P = torch.arange(len(class_P)) - block_C[class_P]
        image_P = self.by_class_N[self.start_C[class_P] + place_P % self.count_C[class_P]]
        round_P = (rounds_C.cumsum(0) - rounds_C)[class_P] + place_P // self.count_C[class_P]
        shuffle = generator(self.seed, self.stage, epoch, "class order")
        order_P = (round_P + torch.rand(len(class_P), generator=shuffle, dtype=torch.float64)).argsort()
        # The r-th draw of a class takes entry r of its block.
        by_class_M = class_N.argsort(stable=True)
        rank_N = torch.empty_like(class_N)
        rank_N[by_class_M] = torch.arange(len(class_N)) - (draws_C.cumsum(0) - draws_C)[class_N[by_class_M]]
        self._drawn = (epoch, image_P[order_P][block_C[class_N] + rank_N])
        return self._drawn[1]

    def _label_weight(self, lambda_x_B: Tensor, n_i_B: Tensor, n_j_B: Tensor) -> Tensor:
        if self.name == "lfm":
            return label_shift(lambda_x_B, n_i_B, n_j_B, self.alpha)
        if self.name == "remix":
            return remix_label(lambda_x_B, n_i_B, n_j_B, self.remix_kappa, self.remix_tau)
        return lambda_x_B
