"""The predictor: a model artifact and images in, labels and probabilities out."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from lfm.artifact import verify
from lfm.config import InputError
from lfm.model import LFM, load_weights


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
        self.model = LFM(self.info["tower"], self.info["channels"], text_CD, seed=0)
        load_weights(self.model, weights)
        self.model.eval()

    @torch.inference_mode()
    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Softmax of the cosines over the training temperature. (N, C).

        Args:
            images: (N, H, W) grey or (N, H, W, 3) colour, uint8, of the size the model was trained on.

        Raises:
            InputError: another type or shape.
        """
        expected = tuple(self.info["image_shape"])
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            raise InputError(f"images are {images.dtype} {images.shape}; this model takes uint8 (N, {expected})")
        pixels = torch.from_numpy(images.copy())
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
        x = (pixels.float() / 255 - self.info["mean"]) / self.info["std"]
        return np.asarray((self.model(x) / self.info["temperature"]).softmax(dim=1).numpy())

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
