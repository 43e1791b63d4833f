"""From pairs to a tower's input: fetch, flip, mix, resize, normalise.

Resizing and normalising are linear, so the fast way mixes first, on the few pixels of a small image.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from lfm.data.crops import Crop
from lfm.data.images import Images
from lfm.method.mixup import PairBatch, mix

FETCH_AHEAD = 3
WHOLE = slice(None)


def positions(batch: PairBatch, rows: slice = WHOLE) -> Tensor:
    """The images some rows of a batch need: all first ones, then all partners, if any will show. (B,) or (2 B,)."""
    return batch.index_B2[rows, : _pair(batch)].T.flatten()


def _pair(batch: PairBatch) -> int:
    return 1 if bool((batch.lambda_x_B == 1).all()) else 2  # nothing of the partners: do not touch their pixels


def mixed_images(
    images: Images,
    batch: PairBatch,
    flip: bool,
    pixels: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    rows: slice = WHOLE,
    crop: Crop | None = None,
) -> Tensor:
    """The pairs of a batch: flipped, mixed, normalised, resized. (B, channels, side, side), channels last.

    Args:
        images: the split; its `resize` says whether PIL's arithmetic comes first, for each image, and mixing last.
        batch: of its pairs.
        flip: each image left-right with probability one half.
        pixels: those of `positions(batch)`, uint8, if they were fetched ahead.
        dtype: of the result, and of the products that resize it.
        rows: of the batch; what is drawn for a row is the same whichever others are asked for.
        crop: of each image a part is seen, drawn anew in each epoch; the parts are mixed.
    """
    pair = _pair(batch)
    pixels = images.fetch_training(positions(batch, rows)) if pixels is None else pixels
    pixels = pixels.to(images.device, non_blocking=True)
    if flip:
        flip_PB = torch.rand(pair * len(batch.index_B2), generator=batch.rng).view(pair, -1)[:, rows] < 0.5
        pixels = _flipped(pixels, flip_PB.flatten())
    parts, exact = pixels.chunk(pair), images.resize == "exact"
    lambda_x_B = batch.lambda_x_B[rows].to(images.device)
    out = images.empty(len(lambda_x_B), dtype)
    if crop:
        box_PB4 = crop.boxes(pixels.shape[2:], pair * len(batch.index_B2), batch.rng).view(pair, -1, 4)[:, rows]
        for here in images.pieces(len(out)):
            cut = [crop.cut(p[here], box_B4[here], out.shape[2:]) for p, box_B4 in zip(parts, box_PB4, strict=True)]
            images.normalise(_mixed(cut, lambda_x_B[here]), out[here])
        return out
    for here in images.pieces(len(out), split=exact or not images.resized):  # the rest is small to the last product
        if exact:
            out[here] = _mixed([images.finish_exactly(part[here]) for part in parts], lambda_x_B[here])
        else:
            images.finish(_mixed([part[here].float() for part in parts], lambda_x_B[here]), out[here])
    return out


def _mixed(parts: list[Tensor], lambda_x_B: Tensor) -> Tensor:
    return mix(parts[0], parts[1], lambda_x_B) if len(parts) == 2 else parts[0]


def _flipped(pixels: Tensor, flip_B: Tensor) -> Tensor:
    """Some images left-right; only those that turn are touched, and whole images copied, which is what is quick."""
    turned_B = flip_B.nonzero()[:, 0]
    place_B = torch.arange(len(pixels))
    place_B[turned_B] = len(pixels) + torch.arange(len(turned_B))
    lying = pixels.permute(0, 2, 3, 1)  # as they lie in memory
    turned = lying.index_select(0, turned_B.to(pixels.device)).flip(2)
    return torch.cat([lying, turned]).index_select(0, place_B.to(pixels.device)).permute(0, 3, 1, 2)


def fetched_ahead(
    images: Images, batches: Iterable[PairBatch], rows: Callable[[PairBatch], slice] = lambda _: WHOLE
) -> Iterator[tuple[PairBatch, Tensor | None]]:
    """The batches with the pixels of some rows, those of the next few being fetched meanwhile where that takes time."""
    if images.held:
        yield from ((batch, None) for batch in batches)
        return
    with ThreadPoolExecutor(1, "fetch") as pool:
        ahead: deque[tuple[PairBatch, Future[Tensor]]] = deque()
        for batch in batches:
            ahead.append((batch, pool.submit(images.fetch_training, positions(batch, rows(batch)))))
            if len(ahead) > FETCH_AHEAD:
                ready, pixels = ahead.popleft()
                yield ready, pixels.result()
        for ready, pixels in ahead:
            yield ready, pixels.result()
