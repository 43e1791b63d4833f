"""From pairs to the tower's input, beside the usual way: each image on its own, then mixing."""

from functools import partial

import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lfm.backbones.towers import DEFAULT, Preprocess
from lfm.data.images import PIECE, Images, _rows_of
from lfm.data.prefetch import mixed_images, positions
from lfm.method.mixup import PairBatch

COUNT = 2 * PIECE + 3
TO = Preprocess(96, DEFAULT.mean, DEFAULT.std, "bicubic", "shortest")


def images(side: int, resize: str = "fast", channels: int = 3) -> Images:
    pixels = torch.randint(
        0, 256, (40, side, side, channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )
    to = TO if channels == 3 else Preprocess(0, (0.4,), (0.3,), "bicubic", "squash")
    return Images(partial(_rows_of, pixels), (channels, side, side), torch.arange(40) % 4, to, True, resize)


def pairs(seed: int = 0, mixed: bool = True) -> PairBatch:
    rng = torch.Generator().manual_seed(seed)
    index = torch.randint(40, (COUNT, 2), generator=rng)
    lam = torch.rand(COUNT, generator=rng) if mixed else torch.ones(COUNT)
    return PairBatch(index, lam, index % 4, torch.ones(COUNT, 2), torch.Generator().manual_seed(100 + seed))


def turned(split: Images, batch: PairBatch, pair: int = 2) -> list[Tensor]:
    """The pixels of a batch's images, each flipped or not by the batch's generator."""
    flip = torch.rand(pair * COUNT, generator=torch.Generator().manual_seed(batch.rng.initial_seed())) < 0.5
    pixels = split.fetch(positions(batch))
    return [image.flip(2) if flip[k] else image for k, image in enumerate(pixels)]


def lerped(first: Tensor, partner: Tensor, batch: PairBatch) -> Tensor:
    lam = batch.lambda_x_B[:, None, None, None].to(first.dtype)
    return lam * first + (1 - lam) * partner


@pytest.mark.parametrize("side", [32, 96])
def test_fast_mixes_first_and_gives_what_mixing_last_gives(side: int) -> None:
    """To 2e-6 of the values' range; float64 beside it."""
    split, batch = images(side), pairs()
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (TO.mean, TO.std))
    x = torch.stack(turned(split, batch)).double() / 255
    x = (F.interpolate(x, (96, 96), mode="bicubic", antialias=True) if side != 96 else x).sub(mean).div(std)
    first, second = x.chunk(2)
    expected = lerped(first, second, batch)
    found = mixed_images(split, batch, flip=True)
    assert found.dtype == torch.float32 and found.is_contiguous(memory_format=torch.channels_last)
    assert (found - expected).abs().max() < 2e-6 * (expected.max() - expected.min())
    low = mixed_images(split, pairs(), flip=True, dtype=torch.bfloat16)
    assert low.dtype == torch.bfloat16
    assert (low - expected).abs().mean() < 0.01


@pytest.mark.parametrize("side", [32, 96])
def test_exact_mixes_what_open_clips_transform_makes_of_each_image(side: int) -> None:
    split, batch = images(side, "exact"), pairs()
    theirs = image_transform(96, is_train=False, mean=TO.mean, std=TO.std)
    x = torch.stack([theirs(Image.fromarray(i.permute(1, 2, 0).numpy())) for i in turned(split, batch)])
    first, partner = x.chunk(2)
    found = mixed_images(split, batch, flip=True)
    assert torch.equal(found, torch.lerp(partner, first, batch.lambda_x_B[:, None, None, None]))


@pytest.mark.parametrize("resize", ["fast", "exact"])
@pytest.mark.parametrize("side", [32, 96])
def test_without_mixing_the_partners_are_not_fetched_and_evaluation_is_the_same_but_for_rounding(
    side: int, resize: str
) -> None:
    split, batch = images(side, resize), pairs(mixed=False)
    assert torch.equal(positions(batch), batch.index_B2[:, 0])
    found = mixed_images(split, batch, flip=False)
    evaluated = split.exact(batch.index_B2[:, 0])
    if resize == "exact":
        assert torch.equal(found, evaluated)
    else:
        assert torch.allclose(found, evaluated, atol=1e-6 if side == 96 else 1.0)
        assert (found - evaluated).abs().mean() < 0.1
    flipped = mixed_images(split, batch, flip=True)
    for k, image in enumerate(turned(split, batch, pair=1)):
        same = torch.equal(image, split.fetch(batch.index_B2[k : k + 1, 0])[0])
        assert torch.allclose(flipped[k], found[k] if same else found[k].flip(2), atol=1e-5)


@pytest.mark.parametrize("resize", ["fast", "exact"])
@pytest.mark.parametrize(("side", "channels"), [(32, 3), (96, 3), (28, 1)])
def test_a_row_is_the_same_whichever_others_are_asked_for(side: int, channels: int, resize: str) -> None:
    split = images(side, resize, channels)
    whole = mixed_images(split, pairs(), flip=True)
    for rows in (slice(0, 1), slice(3, PIECE + 5), slice(COUNT - 2, COUNT)):
        assert torch.allclose(mixed_images(split, pairs(), flip=True, rows=rows), whole[rows], atol=1e-5)


@pytest.mark.parametrize("resize", ["fast", "exact"])
def test_autocast_around_it_changes_nothing(resize: str) -> None:
    """Scoring runs within autocast: products in bfloat16 would not be exact."""
    split, index = images(32, resize), torch.arange(9)
    plain = split.exact(index), mixed_images(split, pairs(), flip=True)
    with torch.autocast("cpu", torch.bfloat16):
        within = split.exact(index), mixed_images(split, pairs(), flip=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, within, strict=True))


def test_pixels_fetched_ahead_are_left_as_they_are() -> None:
    split, batch = images(32), pairs()
    pixels = split.fetch(positions(batch))
    before = pixels.clone()
    found = mixed_images(split, batch, flip=True, pixels=pixels)
    assert torch.equal(pixels, before)
    assert torch.equal(found, mixed_images(split, pairs(), flip=True))
