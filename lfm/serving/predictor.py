"""The predictor: a model artifact and images in, classes and probabilities out.

Letters in the names give shapes: N images, C classes, M new classes, D embedding dimensions.
"""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from lfm.backbones import base
from lfm.backbones.assembly import Assembly
from lfm.backbones.class_embedder import Words, checked
from lfm.backbones.device import pick_device, use_bf16
from lfm.backbones.model import LFM, conv4, load_weights
from lfm.backbones.openclip import build_image_tower, image_tower
from lfm.backbones.towers import Preprocess
from lfm.backbones.tuned_parts import merge
from lfm.config.schema import TextConfig
from lfm.data.decoding import fitted, pixels_of
from lfm.data.depth import ranges_in
from lfm.errors import InputError
from lfm.serving import self_check
from lfm.serving.prior import Own, Prior, Shares
from lfm.storage.artifact import verify

SERVED, TEXT_HALF = "served.json", "text"
BATCH = 32
ZERO_SHOT = "zero-shot"
"""The shot group of a class that training has not seen."""
NOT_PLACED = {
    "random": "note: this model's image tower was trained from scratch and has seen its own classes alone, so it "
    "cannot place new names: where an image falls between them and its classes says little. A pre-trained tower can",
    "imagenet-lite0": "note: this model's image tower has met text in its own classes alone, so it places new names "
    "little better than chance. A tower that was trained on images with their texts can",
}
"""What an answer with new classes says, by the weights that a tower began from."""


class Predictor:
    """A trained model, ready to answer. Safe in threads.

    Args:
        folder: a model artifact, or one made for serving (`lfm.jobs.packaging`), which also has shot groups, a
            calibrated temperature and the text tower; its checksums are compared.
        device: auto, cpu, cuda or cuda:N.
        precision: auto (bf16 where the hardware multiplies it natively), fp32 or bf16.
        backbone: of the untouched towers, for a model that keeps only what was tuned; None: from this machine's store.

    Raises:
        InputError: the folder is no intact model artifact, the towers are not there, or this code computes something
            else than the model was trained with (`lfm.serving.self_check`).
    """

    def __init__(
        self, folder: Path, device: str = "cpu", precision: str = "auto", backbone: Path | None = None
    ) -> None:
        self.content = str(verify(folder)["content"])
        self.info = json.loads((folder / "info.json").read_text())
        if self.info.get("base"):
            backbone = backbone or base.find(self.info["base"])
        self.model = _model(folder, self.info, backbone)
        self.model.eval().requires_grad_(False)
        self.unit_CD = self.model.unit_CD.clone()
        """A row of unit length a class, on the CPU."""
        self.to = Preprocess.of(self.info["preprocess"])
        self.ranges = ranges_in(self.info)
        served = json.loads((folder / SERVED).read_text()) if (folder / SERVED).is_file() else {}
        self._place(torch.device("cpu"), False)
        if "check" in served:
            self_check.compare(served["check"], self.of_picture())
        chosen = pick_device(device)
        self._place(chosen, use_bf16(precision, chosen))
        self.calibration: dict[str, Any] | None = served.get("calibration")
        self.temperature = float((self.calibration or self.info)["temperature"])
        self.classes: list[str] = self.info["classes"]
        self.own = Own.of(self.info, served.get("shift"))
        self.groups: list[str | None] = served.get("groups") or [None] * len(self.classes)
        half = folder / TEXT_HALF
        self.words = _words(served, half if half.is_dir() or not backbone else backbone)

    def _place(self, device: torch.device, bf16: bool) -> None:
        self.device, self.bf16 = device, bf16
        self.model.to(device).to(memory_format=torch.channels_last)
        self.mean, self.std = (torch.tensor(v, device=device)[:, None, None] for v in (self.to.mean, self.to.std))

    def of_picture(self) -> Tensor:
        """f_I of the picture that `self_check` keeps the answer to, (D,)."""
        return self.features(np.stack([self.fit(self_check.picture(self.info))]))[0]

    @property
    def not_placed(self) -> str:
        """What is to be said where new classes are named; empty if the image tower has met more text than its own."""
        return NOT_PLACED.get(self.info["weights"], "")

    def fit(self, image: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """One image as the tower wants it, (H, W, channels) uint8: resized and cropped, grey or colour.

        Args:
            image: of PIL; or (H, W) grey or (H, W, 3) colour.

        Raises:
            InputError: a model that was trained on images as they are takes no others.
        """
        channels, native = self.info["channels"], self.info["image_shape"]
        if isinstance(image, np.ndarray):
            wanted = native and (native[1:] if channels == 1 else [*native[1:], 3])
            if wanted and list(image.shape) != wanted:
                raise InputError(f"is {_by(image.shape)}; this model takes {_by(wanted)}")
            image = Image.fromarray(image)
        pixels = pixels_of(fitted(image.convert("L" if channels == 1 else "RGB"), self.to))
        if native and list(pixels.shape[:2]) != native[1:]:
            raise InputError(f"has {image.height} x {image.width} pixels; this model takes {_by(native[1:])}")
        return pixels.reshape(*pixels.shape[:2], channels)

    def features(self, pixels: NDArray[np.uint8]) -> Tensor:
        """f_I of images that `fit` gave, in their order: (N, H, W, channels) uint8 -> (N, D) float32, on the CPU."""
        parts = []
        for some in torch.from_numpy(pixels).split(BATCH):
            x = some.to(self.device).permute(0, 3, 1, 2).float().div_(255).sub_(self.mean).div_(self.std)
            parts.append(self.encode(x).cpu())
        return torch.cat(parts)

    @torch.inference_mode()
    def encode(self, x: Tensor) -> Tensor:
        """f_I of normalised images on the model's device, (N, channels, H, W) -> (N, D) float32."""
        with torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            return self.model.unit(self.model.image(x))

    @torch.inference_mode()
    def answers(
        self, unit_ND: Tensor, top: int = 5, new_classes: Sequence[str] = (), shares: Shares | None = None
    ) -> list[list[dict[str, Any]]]:
        """For each image the likeliest classes, the likeliest first.

        Args:
            unit_ND: of `features`.
            top: how many; no more than there are.
            new_classes: names that training has not seen, to be weighed against its classes.
            shares: of `shares_of`: in which the classes of training come; None: as the model has it.

        Returns:
            Of each class `label`, `probability` (of all classes, new ones too, they sum to 1), `shot_group` (many,
            medium, few, or zero-shot for a new one) and `zero_shot`.

        Raises:
            InputError: `top` under 1, names that are none, or a model without its text tower.
        """
        if top < 1:
            raise InputError(f"top is {top}; ask for at least 1 class")
        names, groups, unit_CD = self.classes_of(new_classes)
        cosine_NC = unit_ND @ unit_CD.T
        logit_NC = cosine_NC / self.temperature if shares is None else self.own.shifted(cosine_NC, shares)
        order_NK = logit_NC.topk(min(top, len(names)), dim=1).indices  # all of 100,000 classes are never sorted
        chance_NK = logit_NC.softmax(dim=1).gather(1, order_NK)
        return [
            [
                {
                    "label": names[k],
                    "probability": chance,
                    "shot_group": groups[k],
                    "zero_shot": k >= len(self.classes),
                }
                for k, chance in zip(*row, strict=True)
            ]
            for row in zip(order_NK.tolist(), chance_NK.tolist(), strict=True)
        ]

    @torch.inference_mode()
    def shares(self, given: Prior, unit_ND: Tensor) -> Shares | None:
        """The class shares to answer for (`lfm.serving.prior.Own.shares`); None: the model's own, nothing is shifted.

        Args:
            given: none, train, uniform, auto (estimated from these images), or a share for each class.
            unit_ND: of `features`, all images that are asked about together.
        """
        return self.own.shares(given, unit_ND @ self.unit_CD.T)

    def classes_of(self, new_classes: Sequence[str]) -> tuple[list[str], list[str | None], Tensor]:
        """Names, shot groups and unit embeddings of the classes to weigh: those of training, then the new ones.

        Raises:
            InputError: names that are none, or a model without its text tower.
        """
        if not new_classes:
            return self.classes, self.groups, self.unit_CD
        if self.words is None:
            raise InputError("this model was registered without its text tower; register it again with lfm run")
        new = checked(new_classes, self.classes)
        return (
            [*self.classes, *new],
            [*self.groups, *([ZERO_SHOT] * len(new))],
            torch.cat([self.unit_CD, self._unit_of(self.words(new))]),
        )

    def _unit_of(self, text_MD: Tensor) -> Tensor:
        return self.model.unit_of(text_MD.to(self.device)).cpu()

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Softmax of the cosines over the temperature. (N, C).

        Args:
            images: (N, H, W) grey or (N, H, W, 3) colour, uint8; resized as the tower wants them, or, where it was
                trained on images as they are, of that size.

        Raises:
            InputError: another type or shape.
        """
        cosine_NC = self.features(self._fitted(images)) @ self.unit_CD.T
        return np.asarray((cosine_NC / self.temperature).softmax(dim=1).numpy())

    def predict(self, images: NDArray[np.uint8], top: int = 5, new_classes: Sequence[str] = ()) -> pd.DataFrame:
        """`table` of an array of images, as `probabilities` takes them."""
        return self.table(self.answers(self.features(self._fitted(images)), top, new_classes))

    def rows(self, answers: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
        """For each image what is said of its likeliest class, whether that is calibrated, and all in `top`."""
        return [{**answer[0], "calibrated": self.calibration is not None, "top": list(answer)} for answer in answers]

    def table(self, answers: Sequence[Sequence[dict[str, Any]]]) -> pd.DataFrame:
        """`rows` as a data frame."""
        return pd.DataFrame(self.rows(answers), columns=[*COLUMNS, "calibrated", "top"])

    def blank(self) -> NDArray[np.uint8]:
        """A black image of the tower's size, (1, H, W, channels)."""
        height, width = (self.info["image_shape"] or [0, self.to.size, self.to.size])[1:]
        return np.zeros((1, height, width, self.info["channels"]), np.uint8)

    def _fitted(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(N, H, W, channels) uint8 of the tower's size."""
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
            raise InputError(f"images are {images.dtype} {images.shape}; give uint8 (N, H, W) or (N, H, W, 3)")
        return np.stack([self.fit(image) for image in images])


COLUMNS = ("label", "probability", "shot_group", "zero_shot")


def _model(folder: Path, info: dict[str, Any], backbone: Path | None) -> LFM:
    """The model of an artifact, with what was tuned of a tower written into it where that is the same."""
    weights = folder / "model.safetensors"
    text_CD = load_file(weights)["text_CD"]
    if not info["architecture"]:
        image: nn.Module = conv4(info["channels"], text_CD.shape[1], seed=0)
    else:
        image = image_tower(backbone) if backbone else build_image_tower(info["architecture"])
    # A model of before tuned all of its tower.
    model = Assembly.read(info["assembly"]).model(image, text_CD) if "assembly" in info else LFM(image, text_CD)
    load_weights(model, weights)
    merge(model.image)
    return model


def _words(served: dict[str, Any], text: Path) -> Words | None:
    return Words(TextConfig.model_validate(served["text"]), text) if "text" in served else None


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))
