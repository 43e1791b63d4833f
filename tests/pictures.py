"""Pictures as cameras give them, and the bytes of their files."""

import io
from typing import Any

import numpy as np
from PIL import Image


def photo(seed: int, width: int = 300, height: int = 200, mode: str = "RGB") -> Image.Image:
    """Smooth colours with edges and a little noise, as cameras give them."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    array = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16).copy()
    array[height // 3 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
    array += rng.integers(-12, 12, array.shape, dtype=np.int16)
    return Image.fromarray(array.clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()
