"""The model: image tower F_I, matrix W_I, cosine logits against frozen text (Franklin et al. 2024).

Letters in the names give shapes: B images, C classes, D embedding dimensions.
"""

from collections.abc import Mapping, Sequence
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

    With `head` "classes" there is no W_I, and the rows that f_I is compared with train (Shi et al. 2024, LIFT).

    Args:
        image: the tower F_I, (B, channels, H, W) -> (B, D); for a head of classes (B, F), before its projection.
        text_CD: frozen class embeddings, rows of unit length.
        projection_FD: of the tower into the text's space, where there is a head of classes.
        tuned: names of the tower's parameters that stage 1 trains; None: all, and its batch norms follow the images.
    """

    text_CD: Tensor
    projection_FD: Tensor

    def __init__(
        self,
        image: nn.Module,
        text_CD: Tensor,
        projection_FD: Tensor | None = None,
        tuned: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.image, self.tuned = image, tuned
        # Part of the state so that saved weights are a whole model; a buffer, so nothing trains it.
        self.register_buffer("text_CD", text_CD)
        self.rows_CF: nn.Parameter | None = None
        if projection_FD is None:
            dim = text_CD.shape[1]
            self.w = nn.utils.skip_init(nn.Linear, dim, dim, bias=False)  # W_I; no draw from the global generator
            nn.init.eye_(self.w.weight)
        else:
            self.register_buffer("projection_FD", projection_FD)
            self.rows_CF = nn.Parameter(projected(text_CD, projection_FD))

    @property
    def unit_CD(self) -> Tensor:
        """What images are compared with: a row of unit length a class, in the space of `unit`."""
        return self.text_CD if self.rows_CF is None else F.normalize(self.rows_CF, dim=1)

    def unit_of(self, text_MD: Tensor) -> Tensor:
        """What images are compared with for the embeddings of classes that training has not seen; as `unit_CD`."""
        return text_MD if self.rows_CF is None else projected(text_MD, self.projection_FD)

    def forward(self, x: Tensor) -> Tensor:
        """Cosine logits (B, C), float32, of normalised images (B, channels, H, W)."""
        return self.head(self.image(x))

    def unit(self, feature_BD: Tensor) -> Tensor:
        """f_I, rows of unit length, float32, of what the tower gave."""
        return F.normalize((self.w(feature_BD) if self.rows_CF is None else feature_BD).float(), dim=1)

    def head(self, feature_BD: Tensor) -> Tensor:
        """Cosine logits (B, C), float32, of what the tower gave."""
        return self.unit(feature_BD) @ self.unit_CD.T

    def train_stage(self, stage: int) -> list[nn.Parameter]:
        """Put the model into the state of a stage (decoupled training) and return what trains.

        Stage 1: F_I trains, or what is `tuned` of it; W_I is frozen. Stage 2: F_I is frozen, in eval mode so that its
        running statistics stand still, and W_I trains. A head of classes trains in both.
        """
        self.requires_grad_(False).eval()
        trained: list[nn.Parameter] = []
        if stage == 1:
            self.image.train()
            if self.tuned is not None:
                for module in self.image.modules():
                    if isinstance(module, nn.modules.batchnorm._BatchNorm):
                        module.eval()
            own = dict(self.image.named_parameters())
            trained += [own[name] for name in (own if self.tuned is None else self.tuned)]
        elif self.rows_CF is None:
            trained += self.w.train().parameters()
        trained += [] if self.rows_CF is None else [self.rows_CF]
        for parameter in trained:
            parameter.requires_grad_(True)
        return trained

    def changing(self, stage: int = 1) -> dict[str, Tensor]:
        """The state without what does not change from a stage on.

        All in stage 1; where little is `tuned`, that little of the tower; nothing of it in stage 2.
        """
        state = self.state_dict()
        if self.tuned is None and stage == 1:
            return state
        kept = {f"image.{name}" for name in self.tuned or () if stage == 1}
        return {name: value for name, value in state.items() if name in kept or not name.startswith("image.")}


def projected(text_MD: Tensor, projection_FD: Tensor) -> Tensor:
    """Rows in the tower's features for class embeddings: normalise(normalise(f_T) P^T), (M, F) (Shi et al. 2024)."""
    return F.normalize(F.normalize(text_MD, dim=1) @ projection_FD.T, dim=1)


def without_projection(tower: nn.Module) -> Tensor:
    """Take the linear projection into the text's space off a tower.

    Returns:
        The projection P, (F, D), so that the tower gave features @ P before.

    Raises:
        InputError: the tower ends in something else.
    """
    own, head, trunk = (getattr(tower, name, None) for name in ("proj", "head", "trunk"))
    last = getattr(head, "proj", None)
    if isinstance(own, nn.Parameter):  # open_clip's VisionTransformer
        del tower.proj
        tower.register_parameter("proj", None)
        return own.detach()
    if (
        isinstance(head, nn.Sequential) and isinstance(last, nn.Linear) and "bias" not in dict(last.named_parameters())
    ):  # a trunk of timm
        head.proj = nn.Identity()
        return last.weight.detach().T.contiguous()
    if isinstance(head, nn.Sequential) and not len(head) and trunk is not None:  # as SigLIP's, in the text's space
        return torch.eye(trunk.num_features)
    raise InputError(
        "model.head=classes is for towers that end in a linear projection without a bias into the text's space, as "
        "open_clip's ViTs do; this one does not: set it to text"
    )


def load_weights(model: LFM, path: Path) -> None:
    """Fill the model from a safetensors file; every weight must be there, or every one that changes, and no other.

    Raises:
        InputError: another model's weights.
    """
    try:
        state = load_file(path)
        if state.keys() == model.state_dict().keys():
            model.load_state_dict(state)
        else:
            load_changing(model, state)
    except RuntimeError as error:
        raise InputError(f"{path} holds another model's weights; train again with this configuration") from error


def load_changing(model: LFM, state: Mapping[str, Tensor], stage: int = 1) -> None:
    """Fill the model from what `LFM.changing` gave.

    Raises:
        RuntimeError: other names or shapes.
    """
    if differing := state.keys() ^ model.changing(stage).keys():
        raise RuntimeError(f"names differ: {', '.join(sorted(differing)[:3])}")
    model.load_state_dict(state, strict=False)
