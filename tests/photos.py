"""Photos of three classes, each a colour, and a small open_clip tower that tells them apart."""

import io

import numpy as np
from PIL import Image

COLOURS = {"red_rose": (200, 20, 40), "green_leaf": (30, 160, 40), "blue_sea": (20, 60, 190)}
COUNTS = {"red_rose": 40, "green_leaf": 24, "blue_sea": 12}
TOWER = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def photo(name: str, k: int) -> bytes:
    """A JPEG of the class's colour, under noise, of a size of its own."""
    rng = np.random.default_rng([k, len(name)])
    pixels = np.array(COLOURS[name]) + rng.integers(-20, 20, (70 + k % 9, 90 - k % 7, 3))
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "jpeg", quality=90)
    return out.getvalue()


PHOTOS = {(name, k): photo(name, k) for name, count in COUNTS.items() for k in range(count)}
