"""The method: whom an image is mixed with, and where its label goes (paper.md sections 3 and 4).

Letters in the names give shapes:
    B images of a batch; C classes; D embedding dimensions; L classes of a chunk; M chunks; N training images;
    U classes asked for.

Index i is the first image of a pair, j its partner; n_i, n_j are the training images of their classes.
Everything random is a function of (seed, stage, epoch, step) alone, so that a run can be repeated bit for bit
and a resumed one goes on exactly, whatever the device and the number of processes.
"""

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

# Rows of p_ls are kept as one cumulative table up to this many classes (8 bytes an entry: 32 MB). Beyond, only the mass
# of each chunk of `CHUNK` classes is kept, or of longer ones where that would take more than `KEPT_BYTES`.
TABLE_CLASSES = 2048
CHUNK = 32
KEPT_BYTES = 280 * 10**6
# The masses are computed for so many classes together, never fewer: a product of another shape has other last bits.
BLOCK = 32
SCRATCH_ENTRIES = 2**20  # of a product at a time: 4 MB


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

    Up to `table_classes` classes the cumulative rows are computed once. Beyond, each draw finds the chunk of classes
    that u falls into, from the masses of the row's chunks, then the class inside it, from the cosines with that chunk
    alone. Masses are computed when a class of their block is first asked for, which an epoch does once for every block,
    and kept. A draw is a function of its class and u, whatever was asked for before or beside it.

    Both ways give the same class for the same u, but for the rare u that falls into the rounding of float32.

    Args:
        text_CD: class embeddings, rows of unit length, on any device.
        tau: temperature of local sampling.
        uniform: draw uniformly over the other classes instead.
        table_classes: largest C for which the table is kept.
    """

    def __init__(self, text_CD: Tensor, tau: float, uniform: bool = False, table_classes: int = TABLE_CLASSES) -> None:
        self.text_CD, self.tau, self.uniform = text_CD, tau, uniform
        classes, every_C = len(text_CD), torch.arange(len(text_CD), device=text_CD.device)
        assert classes >= 2, "mixing needs two classes"
        self.table = None
        if classes <= table_classes and not uniform:
            ends_CC = local_sampling_rows(text_CD, every_C, tau).cumsum(dim=1)
            # End to end, row r in [r, r + 1], so that one search serves every row. Divided by its last entry a row ends
            # in exactly 1, above every u. The class itself adds no mass, so no u falls on it.
            self.table = ends_CC.div_(ends_CC[:, -1:].clone()).add_(every_C[:, None]).flatten()
        elif not uniform:
            most = max(1, KEPT_BYTES // (4 * classes))
            self.chunk = min(classes, max(CHUNK, -(-classes // most)))
            chunks, blocks = -(-classes // self.chunk), -(-classes // BLOCK)
            self.mass_CM = torch.empty(classes, chunks, device=text_CD.device)  # takes room as it is filled
            self.filled = torch.zeros(blocks, dtype=torch.bool, device=text_CD.device)

    def draw(self, class_B: Tensor, u_B: Tensor) -> Tensor:
        """Partner classes, never the class itself.

        Args:
            class_B: the first images' classes.
            u_B: uniform draws in [0, 1), float64.

        Returns:
            (B,) int64.
        """
        classes = len(self.text_CD)
        if self.uniform:
            other_B = (u_B * (classes - 1)).long().clamp_(max=classes - 2)
            return other_B + (other_B >= class_B)
        u_B = u_B.clamp(max=1 - 1e-9)  # u + r must not round up into the next row
        if self.table is not None:
            return torch.searchsorted(self.table, u_B + class_B, right=True) - class_B * classes
        size = max(1, SCRATCH_ENTRIES // max(self.mass_CM.shape[1], self.chunk))
        return torch.cat([self._by_chunks(*one) for one in zip(class_B.split(size), u_B.split(size), strict=True)])

    def _by_chunks(self, class_B: Tensor, u_B: Tensor) -> Tensor:
        block_B = class_B // BLOCK
        for block in block_B[~self.filled[block_B]].unique().tolist():
            self._fill(block)
        chunk_B, share_B = _invert(self.mass_CM[class_B].double(), u_B)
        # The last chunk may be short: then the classes before it make it up, without mass.
        begin_B = chunk_B * self.chunk
        first_B = begin_B.clamp(max=len(self.text_CD) - self.chunk)
        place_BL = first_B[:, None] + torch.arange(self.chunk, device=class_B.device)
        no_mass_BL = (place_BL == class_B[:, None]) | (place_BL < begin_B[:, None])
        logit_BL = self._cosines(class_B, place_BL).sub_(1).div_(self.tau).masked_fill_(no_mass_BL, -torch.inf)
        return first_B + _invert(logit_BL.double().softmax(dim=1), share_B)[0]

    def _cosines(self, class_B: Tensor, place_BL: Tensor) -> Tensor:
        """f_Ti . f_Tj of each class with L others in ascending order. (B, L).

        They are the wanted entries of a sparse (B, C), read where they lie: gathering L rows for each image takes five
        times as long, and the last bits of a batched product depend on B.
        """
        ends = torch.arange(0, place_BL.numel() + 1, place_BL.shape[1], device=place_BL.device)
        zero = self.text_CD.new_zeros(place_BL.numel())
        size = (len(class_B), len(self.text_CD))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            wanted_BC = torch.sparse_csr_tensor(ends, place_BL.flatten(), zero, size, check_invariants=False)
        cosine_BC: Tensor = torch.sparse.sampled_addmm(wanted_BC, self.text_CD[class_B], self.text_CD.T)
        return cosine_BC.values().view_as(place_BL)

    def _fill(self, block: int) -> None:
        """Compute the masses of a block of classes."""
        begin, count = block * BLOCK, self.mass_CM.shape[1]
        text_UD = self.text_CD[begin : begin + BLOCK]
        log_MU = torch.empty(count, len(text_UD), dtype=text_UD.dtype, device=text_UD.device)
        step = max(1, SCRATCH_ENTRIES // BLOCK // self.chunk)
        for m in range(0, count, step):
            start = m * self.chunk
            logit_WU = (self.text_CD[start : start + step * self.chunk] @ text_UD.T).sub_(1).div_(self.tau)
            logit_WU.diagonal(start - begin).fill_(-torch.inf)  # the classes themselves
            logit_WU = F.pad(logit_WU, (0, 0, 0, -len(logit_WU) % self.chunk), value=-torch.inf)
            log_MU[m : m + step] = logit_WU.view(-1, self.chunk, len(text_UD)).logsumexp(dim=1)
        self.mass_CM[begin : begin + BLOCK] = log_MU.double().softmax(dim=0).T
        self.filled[block] = True


def _invert(mass_BM: Tensor, u_B: Tensor) -> tuple[Tensor, Tensor]:
    """The first entry of each row whose cumulative share of the row's mass exceeds u, and the share of it below u."""
    ends_BM = F.pad(mass_BM.cumsum(dim=1), (1, 0))
    goal_B1 = u_B[:, None] * ends_BM[:, -1:]
    found_B1 = torch.searchsorted(ends_BM[:, 1:].contiguous(), goal_B1, right=True)
    low_B1, high_B1 = ends_BM.gather(1, found_B1), ends_BM.gather(1, found_B1 + 1)
    share_B1 = ((goal_B1 - low_B1) / (high_B1 - low_B1)).clamp_(0, 1 - 1e-9)
    return found_B1[:, 0], share_B1[:, 0]


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
        return self.partners.draw(class_B, torch.rand(len(class_B), generator=rng, dtype=torch.float64))

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
