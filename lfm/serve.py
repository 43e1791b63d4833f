"""The predictor: a model artifact and images in, labels and probabilities out."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from lfm.artifact import verify
from lfm.backbone import Preprocess, build_image_tower
from lfm.config import InputError
from lfm.data.decode import fitted, pixels_of
from lfm.model import LFM, conv4, load_weights


class Predictor:
    """A trained model, ready to answer.

    Args:
        folder: a model artifact; its checksums are compared.

    Raises:
        InputError: the folder is no intact model artifact.
    """

    def __init__(self, folder: Path) -> None:
        verify(folder)
        self.info = json.loads((folder / "info.json").read_text())
        weights = folder / "model.safetensors"
        text_CD = load_file(weights)["text_CD"]
        if self.info["architecture"]:
            image = build_image_tower(self.info["architecture"])
        else:
            image = conv4(self.info["channels"], text_CD.shape[1], seed=0)
        self.model = LFM(image, text_CD)
        load_weights(self.model, weights)
        self.model.eval()
        self.to = Preprocess.of(self.info["preprocess"])
        self.mean, self.std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (self.to.mean, self.to.std))

    @torch.inference_mode()
    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Softmax of the cosines over the training temperature. (N, C).

        Args:
            images: (N, H, W) grey or (N, H, W, 3) colour, uint8; resized as the tower wants them, or, where it was
                trained on images as they are, of that size.

        Raises:
            InputError: another type or shape.
        """
        x = torch.from_numpy(self._fitted(images)).permute(0, 3, 1, 2).float() / 255
        x = (x - self.mean) / self.std
        return np.asarray((self.model(x) / self.info["temperature"]).softmax(dim=1).numpy())

    def _fitted(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(N, H, W, channels) uint8 of the tower's size."""
        channels, native = self.info["channels"], self.info["image_shape"]
        shape = (native[1:] if channels == 1 else [*native[1:], 3]) if native else None
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
            raise InputError(f"images are {images.dtype} {images.shape}; give uint8 (N, H, W) or (N, H, W, 3)")
        if shape and list(images.shape[1:]) != shape:
            raise InputError(f"images are {images.shape}; this model takes uint8 (N, {', '.join(map(str, shape))})")
        if shape:
            return images.reshape(*images.shape[:3], channels).copy()
        mode = "L" if channels == 1 else "RGB"
        out = np.stack([pixels_of(fitted(Image.fromarray(image).convert(mode), self.to)) for image in images])
        return out.reshape(*out.shape[:3], channels)

    def predict(self, images: NDArray[np.uint8]) -> pd.DataFrame:
        """A row an image: the best class and its probability."""
        probability_NC = self.probabilities(images)
        best_N = probability_NC.argmax(axis=1)
        return pd.DataFrame(
            {
                "label": [self.info["classes"][k] for k in best_N],
                "probability": probability_NC.max(axis=1).astype(np.float64),
            }
        )
