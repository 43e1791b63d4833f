"""Whether this code computes what the model was trained with: its answer to a picture, kept when it was registered.

A version of the code is not what counts: most changes leave every answer as it was, and a library can change one too.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lfm import __version__
from lfm.errors import InputError
from lfm.revision import commit

if TYPE_CHECKING:
    from torch import Tensor

FARTHEST = 0.01
"""Distance of two unit embeddings; float32 on two machines gives less than a tenth of it, another activation more."""


def picture(info: Mapping[str, Any]) -> Image.Image:
    """A picture with edges and colours, the same on every machine; oblong, where the tower takes images of any size.

    Args:
        info: of the model (`lfm.training.model_artifact.model_info`).
    """
    height, width = (info["image_shape"] or [0, 61, 97])[1:]
    y, x = np.mgrid[:height, :width]
    levels = np.stack([x * 5 + y * 3, x * y, 40 * (x // 7 % 2) + 190 * (y // 9 % 2)], axis=2)
    return Image.fromarray((levels % 256).astype(np.uint8))


def kept(unit_D: "Tensor") -> dict[str, Any]:
    """What is kept with the model of its answer, (D,)."""
    return {"unit": [round(value, 6) for value in unit_D.tolist()], "lfm": __version__, "commit": commit()}


def compare(before: Mapping[str, Any], unit_D: "Tensor") -> None:
    """Refuse code that gives another answer than the one that was kept.

    Args:
        before: of `kept`.
        unit_D: the answer of now.

    Raises:
        InputError: says which version made the model, and how to go on.
    """
    distance = float(np.linalg.norm(np.array(before["unit"]) - unit_D.numpy()))
    if not distance <= FARTHEST:  # NaN too
        raise InputError(
            f"this installation (LFM {__version__}, {commit()}) computes something else than the model was trained "
            f"with: its embedding of the picture kept with the model is off by {distance:.3f}, where {FARTHEST} is "
            f"rounding. Install what made it (LFM {before['lfm']}, {before['commit']}, and the packages in its "
            "requirements.txt), serve it with the code that it brings along (mlflow models serve), or train it again"
        )
