"""Random parts of training images, beside torchvision's draws and PyTorch's own resizing."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torch.nn import functional as F  # noqa: N812

from lfm.config.presets import load
from lfm.data.crops import LEAST_AREA, Crop
from lfm.data.prefetch import mixed_images
from lfm.errors import InputError
from lfm.method.draws import generator
from lfm.training.batches import pair_sampler
from tests.small_stage import config, images, text


@pytest.mark.parametrize("size", [(40, 40), (40, 90), (300, 20)])
def test_parts_are_distributed_as_those_of_torchvision(size: tuple[int, int]) -> None:
    from torchvision.transforms import RandomResizedCrop

    box_B4 = Crop("random", 0.3).boxes(size, 4000, generator(1))
    torch.manual_seed(0)
    blank = torch.zeros(1, *size)
    theirs_B4 = np.array([RandomResizedCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    top_B, left_B, high_B, wide_B = box_B4.T
    assert int(top_B.min()) >= 0 and int(left_B.min()) >= 0 and int(high_B.min()) > 0 and int(wide_B.min()) > 0
    assert int((top_B + high_B).max()) <= size[0] and int((left_B + wide_B).max()) <= size[1]
    for ours, theirs in zip(box_B4.T.numpy(), theirs_B4.T, strict=True):
        assert ks_2samp(ours, theirs, method="asymp").pvalue > 1e-3


def test_growing_squares_begin_at_8_percent_and_end_at_the_whole_image() -> None:
    shares = []
    for done in (0.0, 0.5, 0.9, 1.0):
        crop = Crop("growing", done)
        assert crop.least_area == pytest.approx(LEAST_AREA + (1 - LEAST_AREA) * (1 - math.sqrt(1 - done**2)))
        box_B4 = crop.boxes((50, 50), 2000, generator(2))
        assert torch.equal(box_B4[:, 2], box_B4[:, 3])
        share_B = box_B4[:, 2].double() ** 2 / 2500
        assert float(share_B.min()) >= crop.least_area - 0.03
        shares.append(float(share_B.mean()))
        assert shares[-1] == pytest.approx((1 + crop.least_area) / 2, abs=0.02), "uniform in area"
    assert shares[-1] == 1.0
    assert Crop("growing", 0).boxes((30, 90), 9, generator(3))[:, 3].max() <= 30, "squares of an oblong image"


@pytest.mark.parametrize(("kind", "mode"), [("random", "bilinear"), ("growing", "bicubic")])
def test_a_part_is_resized_as_pytorch_resizes_it(kind: str, mode: str) -> None:
    pixels = torch.randint(0, 256, (3, 2, 20, 24), generator=generator(4), dtype=torch.uint8)
    box_B4 = torch.tensor([[0, 0, 20, 24], [4, 6, 10, 12], [3, 2, 7, 15]])
    cut = Crop(kind, 0.2).cut(pixels, box_B4, (40, 48))
    for image, (top, left, high, wide), ours in zip(pixels, box_B4.tolist(), cut, strict=True):
        part = image[None, :, top : top + high, left : left + wide].float()
        theirs = F.interpolate(part, (40, 48), mode=mode, align_corners=False).clamp(0, 255)[0]
        # Of a part, ours sees the pixels next to it, as the whole image has them; inside both are the same.
        edge = 0 if (high, wide) == (20, 24) else 14
        inside = (slice(None), slice(edge, 40 - edge), slice(edge, 48 - edge))
        assert torch.allclose(ours[inside], theirs[inside], atol=2e-3)


def test_the_parts_of_a_row_are_the_same_whichever_rows_a_process_computes() -> None:
    data = images()
    sampler = pair_sampler(config(), 1, data.label_N, text(), 0.5, 16)
    crop = Crop("random", 0.0)
    whole = mixed_images(data, sampler.batch(0, 1), True, crop=crop)
    rows = mixed_images(data, sampler.batch(0, 1), True, rows=slice(5, 11), crop=crop)
    assert torch.equal(whole[5:11], rows)
    assert not torch.equal(whole, mixed_images(data, sampler.batch(0, 1), True)), "parts are not the whole"
    everything = mixed_images(data, sampler.batch(0, 1), True, crop=Crop("growing", 1.0))
    assert torch.allclose(everything, mixed_images(data, sampler.batch(0, 1), True), atol=1e-5), "all of it is"


def test_parts_and_exact_resizing_exclude_each_other() -> None:
    with pytest.raises(InputError, match="crop=random resizes parts of images in its own way; set resize=fast"):
        load("custom", {"train.crop": "random", "train.resize": "exact"})
