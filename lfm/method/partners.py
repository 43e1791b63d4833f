"""Drawing partners: a class by inversion of its cumulative distribution, then an image of that class.

The distribution itself is `lfm.method.mixup.local_sampling_rows`. A draw is a function of its class and u, whatever
was drawn before it or in parallel, so that a resumed run goes on exactly.

Letters in the names give shapes:
    B images of a batch; C classes; D embedding dimensions; L classes of a chunk; M chunks; N training images;
    P places, the images of each class as often as they are needed; U classes of a block.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

# Chunks have so many classes, or more where the masses of all chunks would take more than `KEPT_BYTES`.
CHUNK = 32
KEPT_BYTES = 270 * 10**6
# The masses are computed for so many classes together, never fewer: a product of another shape has other last bits.
BLOCK = 16


class PartnerSampler(Protocol):
    """Draws a partner class for each first image of a batch."""

    def draw(self, class_B: Tensor, u_B: Tensor) -> Tensor:
        """Partner classes, never the class itself.

        Args:
            class_B: the first images' classes.
            u_B: uniform draws in [0, 1), float64.

        Returns:
            (B,) int64.
        """
        ...


@dataclass(frozen=True)
class Barred:
    """Classes that are never each other's partner.

    Args:
        max_similarity: highest cosine of their embeddings; 1: any.
        pair_P2: pairs of classes, int64, each in one order.
    """

    max_similarity: float = 1.0
    pair_P2: Tensor = field(default_factory=lambda: torch.zeros((0, 2), dtype=torch.long))

    def __bool__(self) -> bool:
        return self.max_similarity < 1 or len(self.pair_P2) > 0

    def mask(self, class_U: Tensor, place_UL: Tensor, cosine_UL: Tensor) -> Tensor:
        """Whether each of L classes is barred from each of U. (U, L) bool.

        Args:
            class_U: the first images' classes.
            place_UL: the classes asked about, or (1, L) if they are the same for all.
            cosine_UL: of the two.
        """
        barred_UL = cosine_UL > (self.max_similarity if self.max_similarity < 1 else torch.inf)
        for one, other in self.pair_P2.tolist():
            for a, b in ((one, other), (other, one)):
                barred_UL |= (class_U[:, None] == a) & (place_UL == b)
        return barred_UL


class UniformPartners:
    """Every other class alike.

    Args:
        classes: how many there are, at least 2.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def draw(self, class_B: Tensor, u_B: Tensor) -> Tensor:  # noqa: D102
        other_B = (u_B * (self.classes - 1)).long().clamp_(max=self.classes - 2)
        return other_B + (other_B >= class_B)


class TablePartners:
    """The first class whose cumulative mass exceeds u, from a table of all rows: 8 bytes an entry.

    Args:
        row_CC: partner distribution of every class, float64, rows summing to 1, zero on the diagonal.
    """

    def __init__(self, row_CC: Tensor) -> None:
        self.classes = len(row_CC)
        every_C, ends_CC = torch.arange(self.classes, device=row_CC.device), row_CC.cumsum(dim=1)
        # End to end, row r in [r, r + 1], so that one search serves every row. Divided by its last entry a row ends
        # in exactly 1, above every u. The class itself adds no mass, so no u falls on it.
        self.table = ends_CC.div_(ends_CC[:, -1:].clone()).add_(every_C[:, None]).flatten()

    def draw(self, class_B: Tensor, u_B: Tensor) -> Tensor:  # noqa: D102
        u_B = u_B.clamp(max=1 - 1e-9)  # u + r must not round up into the next row
        return torch.searchsorted(self.table, u_B + class_B, right=True) - class_B * self.classes


class ChunkPartners:
    """The same for so many classes that the table would not fit: find the chunk that u falls into, then the class.

    The masses of a row's chunks are computed when a class of its block is first asked for, and kept in float32. The
    masses inside one chunk are computed for each draw. The table draws the same class for the same u, but for the
    rare u that falls into the rounding of float32.

    Args:
        text_CD: class embeddings, rows of unit length.
        tau: temperature of local sampling.
        rows_of: partner distributions of some classes, (U,) -> (U, C).
        barred: what `rows_of` leaves out.
    """

    def __init__(
        self, text_CD: Tensor, tau: float, rows_of: Callable[[Tensor], Tensor], barred: Barred | None = None
    ) -> None:
        self.text_CD, self.tau, self.rows_of, self.barred = text_CD, tau, rows_of, barred
        classes = len(text_CD)
        most = max(1, KEPT_BYTES // (4 * classes))
        self.chunk = min(classes, max(CHUNK, -(-classes // most)))
        chunks, blocks = -(-classes // self.chunk), -(-classes // BLOCK)
        self.mass_CM = torch.empty(classes, chunks, device=text_CD.device)  # takes memory as it is filled
        self.filled = torch.zeros(blocks, dtype=torch.bool, device=text_CD.device)

    def draw(self, class_B: Tensor, u_B: Tensor) -> Tensor:  # noqa: D102
        block_B = class_B // BLOCK
        for block in block_B[~self.filled[block_B]].unique().tolist():
            self._fill(block)
        chunk_B, share_B = _invert(self.mass_CM[class_B].double(), u_B.clamp(max=1 - 1e-9))
        # The last chunk may be short: then the classes before it make it up, without mass.
        begin_B = chunk_B * self.chunk
        first_B = begin_B.clamp(max=len(self.text_CD) - self.chunk)
        place_BL = first_B[:, None] + torch.arange(self.chunk, device=class_B.device)
        no_mass_BL = (place_BL == class_B[:, None]) | (place_BL < begin_B[:, None])
        cosine_BL = self._cosines(class_B, place_BL)
        if self.barred:
            no_mass_BL |= self.barred.mask(class_B, place_BL, cosine_BL)
        score_BL = cosine_BL.double().div_(self.tau).masked_fill_(no_mass_BL, -torch.inf)
        return first_B + _invert(score_BL.softmax(dim=1), share_B)[0]

    def _cosines(self, class_B: Tensor, place_BL: Tensor) -> Tensor:
        """f_Ti . f_Tj of each class with L others in ascending order. (B, L).

        They are the wanted entries of a sparse (B, C), read where they lie. A product for each draw takes twice as
        long; gathering L rows for each takes ten times as long, and its last bits depend on B.
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
        class_U = torch.arange(len(self.text_CD), device=self.text_CD.device)[block * BLOCK :][:BLOCK]
        row_UC = F.pad(self.rows_of(class_U), (0, self.mass_CM.shape[1] * self.chunk - len(self.text_CD)))
        self.mass_CM[class_U] = row_UC.view(len(class_U), -1, self.chunk).sum(dim=2).float()
        self.filled[block] = True


def _invert(mass_BM: Tensor, u_B: Tensor) -> tuple[Tensor, Tensor]:
    """The first entry of each row whose cumulative share of the row's mass exceeds u, and the share of it below u."""
    ends_BM = F.pad(mass_BM.cumsum(dim=1), (1, 0))
    goal_B1 = u_B[:, None] * ends_BM[:, -1:]
    found_B1 = torch.searchsorted(ends_BM[:, 1:].contiguous(), goal_B1, right=True)
    low_B1, high_B1 = ends_BM.gather(1, found_B1), ends_BM.gather(1, found_B1 + 1)
    share_B1 = ((goal_B1 - low_B1) / (high_B1 - low_B1)).clamp_(0, 1 - 1e-9)
    return found_B1[:, 0], share_B1[:, 0]


class ImagesByClass:
    """The training images of each class.

    Args:
        label_N: class of each image, int64; every class must occur.
        classes: how many there are.
    """

    def __init__(self, label_N: Tensor, classes: int) -> None:
        self.count_C = label_N.bincount(minlength=classes)
        assert self.count_C.min() > 0, "every class needs an image"
        self.by_class_N = label_N.argsort(stable=True)
        self.start_C = self.count_C.cumsum(0) - self.count_C

    def uniform(self, class_B: Tensor, u_B: Tensor) -> Tensor:
        """An image of each class asked for, from a uniform draw u in [0, 1). (B,) positions in the training set."""
        rank_B = (u_B * self.count_C[class_B]).long()
        return self.by_class_N[self.start_C[class_B] + rank_B]

    def until_used_up(self, class_N: Tensor, rng: torch.Generator) -> Tensor:
        """An image of each class asked for, each class gone through in random order, again and again.

        Args:
            class_N: the classes asked for in an epoch, in order.
            rng: draws the orders.

        Returns:
            (N,) positions in the training set.
        """
        draws_C = class_N.bincount(minlength=len(self.count_C))
        rounds_C = -(-draws_C // self.count_C)  # how often each class is gone through, rounded up
        # One block a class: its images, `rounds` times over, those of a round in random order.
        size_C = rounds_C * self.count_C
        block_C = size_C.cumsum(0) - size_C
        class_P = torch.repeat_interleave(torch.arange(len(size_C)), size_C)
        place_P = torch.arange(len(class_P)) - block_C[class_P]
        image_P = self.by_class_N[self.start_C[class_P] + place_P % self.count_C[class_P]]
        round_P = (rounds_C.cumsum(0) - rounds_C)[class_P] + place_P // self.count_C[class_P]
        order_P = (round_P + torch.rand(len(class_P), generator=rng, dtype=torch.float64)).argsort()
        # The r-th draw of a class takes entry r of its block.
        by_class_N = class_N.argsort(stable=True)
        rank_N = torch.empty_like(class_N)
        rank_N[by_class_N] = torch.arange(len(class_N)) - (draws_C.cumsum(0) - draws_C)[class_N[by_class_N]]
        return image_P[order_P][block_C[class_N] + rank_N]
