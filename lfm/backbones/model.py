"""The model: image tower F_I, matrix W_I, cosine logits against frozen text (Franklin et al. 2024).

Letters in the names give shapes: B images, C classes, D embedding dimensions.
"""

from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from lfm.errors import InputError


def conv4(channels: int, dim: int, seed: int) -> nn.Sequential:
    """Four conv-BN-ReLU blocks (32, 64, 128, 128), max pooling after the first three, mean pooling, linear.

    Takes (B, channels, H, W) with H, W of at least 8; gives (B, dim). From scratch, for small images.

    Args:
        channels: of the images.
        dim: of the class embeddings.
        seed: draws the initial weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _conv4(channels, dim)


def _conv4(channels: int, dim: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    widths = [channels, 32, 64, 128, 128]
    for block, (wide_in, wide_out) in enumerate(pairwise(widths)):
        layers += [
            nn.Conv2d(wide_in, wide_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(wide_out),
            nn.ReLU(inplace=True),
        ]
        layers += [nn.MaxPool2d(2)] if block < 3 else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], dim))


class LFM(nn.Module):
    """f_I = normalise(W_I F_I(x)); logits = f_I f_T^T, cosines in [-1, 1].

    Args:
        image: the tower F_I, (B, channels, H, W) -> (B, D).
        text_CD: frozen class embeddings, rows of unit length.
    """

    text_CD: Tensor

    def __init__(self, image: nn.Module, text_CD: Tensor) -> None:
        super().__init__()
        dim = text_CD.shape[1]
        self.image = image
        self.w = nn.utils.skip_init(nn.Linear, dim, dim, bias=False)  # W_I; no draw from the global generator
        nn.init.eye_(self.w.weight)
        # Part of the state so that saved weights are a whole model; a buffer, so nothing trains it.
        self.register_buffer("text_CD", text_CD)

    def forward(self, x: Tensor) -> Tensor:
        """Cosine logits (B, C), float32, of normalised images (B, channels, H, W)."""
        return self.head(self.image(x))

    def head(self, feature_BD: Tensor) -> Tensor:
        """Cosine logits (B, C), float32, of what the tower gave."""
        image_BD = F.normalize(self.w(feature_BD).float(), dim=1)
        return image_BD @ self.text_CD.T

    def train_stage(self, stage: int) -> list[nn.Parameter]:
        """Put the model into the state of a stage (decoupled training) and return what trains.

        Stage 1: F_I trains, W_I is frozen. Stage 2: F_I is frozen, in eval mode so that its running statistics
        stand still, and W_I trains.
        """
        trained, frozen = (self.image, self.w) if stage == 1 else (self.w, self.image)
        trained.train().requires_grad_(True)
        frozen.eval().requires_grad_(False)
        return list(trained.parameters())


def load_weights(model: LFM, path: Path) -> None:
    """Fill the model from a safetensors file; every weight must be there.

    Raises:
        InputError: another model's weights.
    """
    try:
        model.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise InputError(f"{path} holds another model's weights; train again with this configuration") from error
