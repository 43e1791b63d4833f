"""What a stage gives its network: mixed pixels for the whole model, or mixed features for its head alone.

Letters in the names give shapes: B images of a step that this process computes, N training images, V views of an image
(as it is, and left-right), D features.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from lfm.backbones.model import LFM
from lfm.config.schema import TrainConfig
from lfm.data.crops import Crop
from lfm.data.images import Images
from lfm.data.prefetch import fetched_ahead, mixed_images
from lfm.evaluation.inference import EVAL_PIXELS
from lfm.method.mixup import PairBatch, mix
from lfm.progress import bar
from lfm.training.processes import Processes

Rows = Callable[[PairBatch], slice]


class MixedPixels:
    """Images are fetched, flipped, cropped and mixed; the model sees each mix.

    Args:
        net: the model.
        images: training split.
        train: flip and crop.
        dtype: of the images, and of autocast.
        layout: memory format of the images.
    """

    def __init__(
        self, net: nn.Module, images: Images, train: TrainConfig, dtype: torch.dtype, layout: torch.memory_format
    ) -> None:
        self.net, self.images, self.train, self.dtype, self.layout = net, images, train, dtype, layout

    def ahead(self, batches: Iterable[PairBatch], rows: Rows) -> Iterator[tuple[PairBatch, Tensor | None]]:
        """The batches, pixels of the next ones being fetched meanwhile."""
        return fetched_ahead(self.images, batches, rows)

    def mixed(self, batch: PairBatch, pixels: Tensor | None, done: float, rows: slice) -> Tensor:
        """The network's input, (B, channels, side, side).

        Args:
            batch: pairs of all processes.
            pixels: of this process's rows, if they were fetched ahead.
            done: share of the stage that is done.
            rows: of this process.
        """
        crop = None if self.train.crop == "none" else Crop(self.train.crop, done)
        x = mixed_images(self.images, batch, self.train.flip, pixels, self.dtype, rows, crop)
        return x.contiguous(memory_format=self.layout)


class MixedFeatures:
    """A frozen tower sees each image once, or once each way where images are flipped; its features are mixed.

    Crops, dropout and mixing of pixels have no part in it.

    Args:
        model: whose tower stands still.
        images: training split.
        train: flip.
        dtype: of autocast.
        processes: each computes its share of the images.
    """

    def __init__(
        self, model: LFM, images: Images, train: TrainConfig, dtype: torch.dtype, processes: Processes
    ) -> None:
        self.net = _Head(model)
        views = 2 if train.flip else 1
        own = torch.arange(processes.rank, len(images), processes.count)
        found = []
        with (
            torch.inference_mode(),
            torch.autocast(images.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16),
            bar(len(own), "features", "images", 0, not processes.first) as progress,
        ):
            for index_B in own.split(max(1, min(256, EVAL_PIXELS // images.side**2))):
                x = images.exact(index_B)
                found.append(torch.stack([model.image(x if v == 0 else x.flip(3)) for v in range(views)], dim=1))
                progress.update(len(index_B))
        own_NVD = torch.cat(found)
        self.feature_NVD = own_NVD.new_zeros(len(images), *own_NVD.shape[1:])
        self.feature_NVD[own.to(own_NVD.device)] = own_NVD
        self.feature_NVD = processes.reduce(self.feature_NVD, "sum").clone()  # no longer of inference mode

    def ahead(self, batches: Iterable[PairBatch], rows: Rows) -> Iterator[tuple[PairBatch, None]]:
        """The batches: there is nothing to fetch."""
        return ((batch, None) for batch in batches)

    def mixed(self, batch: PairBatch, pixels: Tensor | None, done: float, rows: slice) -> Tensor:
        """The head's input, (B, D); the arguments are those of `MixedPixels.mixed`."""
        index_B2 = batch.index_B2[rows]
        view_B2 = torch.zeros_like(index_B2)
        if self.feature_NVD.shape[1] == 2:
            flip_2B = torch.rand(2, len(batch.index_B2), generator=batch.rng)[:, rows] < 0.5
            view_B2 = flip_2B.T.long()
        first_BD, second_BD = self.feature_NVD[index_B2, view_B2].float().unbind(dim=1)
        return mix(first_BD, second_BD, batch.lambda_x_B[rows].to(first_BD.device))


class _Head(nn.Module):
    """The head of a model as a network of its own."""

    def __init__(self, model: LFM) -> None:
        super().__init__()
        self.model = model

    def forward(self, feature_BD: Tensor) -> Tensor:
        """Cosine logits, (B, C)."""
        return self.model.head(feature_BD)
