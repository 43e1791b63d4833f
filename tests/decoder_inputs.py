"""Valid files of every kind that is read, as seeds of damage."""

import io
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image

from tests.deep import chunk, jpeg2000, pgm, png16, tiff
from tests.pictures import encoded, photo


def frames(kind: str, count: int = 3) -> bytes:
    out = io.BytesIO()
    first, *others = (photo(seed, 40, 30) for seed in range(count))
    first.save(out, kind, save_all=True, append_images=others)
    return out.getvalue()


def _exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


_RNG = np.random.default_rng(7)
VALID: dict[str, Callable[[], bytes]] = {
    **{kind: partial(encoded, photo(1, 40, 30), kind) for kind in (
        "png", "jpeg", "gif", "bmp", "webp", "tiff", "ppm", "jpeg2000", "avif",
    )},
    **{f"{kind} of frames": partial(frames, kind) for kind in ("gif", "png", "tiff", "webp", "avif", "mpo")},
    "cmyk": lambda: encoded(photo(2, 40, 30, "CMYK"), "jpeg"),
    "palette": lambda: encoded(photo(3, 40, 30, "P"), "png", transparency=3),
    "turned": lambda: encoded(photo(4, 40, 30), "jpeg", exif=_exif(6)),
    "turned png": lambda: png16(_RNG.integers(0, 65536, (9, 8)), chunk(b"eXIf", _exif(8).tobytes()[6:])),
    "compressed tiff": lambda: encoded(photo(5, 40, 30), "tiff", compression="tiff_lzw"),
    "jpeg in tiff": lambda: encoded(photo(5, 40, 30), "tiff", compression="jpeg"),
    "deep grey": lambda: png16(_RNG.integers(0, 4096, (20, 30))),
    "deep colours": lambda: png16(_RNG.integers(0, 4096, (20, 30, 4))),
    "deep colour tiff": lambda: tiff(_RNG.integers(0, 65536, (20, 30, 3)).astype("<u2")),
    "floats": lambda: tiff(_RNG.random((20, 30)).astype("<f4")),
    "int32": lambda: tiff(_RNG.integers(-9, 70_000, (20, 30)).astype("<i4")),
    "pgm": lambda: pgm(_RNG.integers(0, 1024, (20, 30)), 1023),
    "deep jp2": lambda: jpeg2000(_RNG.integers(0, 65536, (40, 30)).astype(np.uint16)),
}  # fmt: skip


def mutated(seed: int) -> tuple[str, bytes]:
    """A valid file with seeded damage: its kind, and its bytes."""
    rng = np.random.default_rng(seed)
    names = list(VALID)
    name = names[int(rng.integers(len(names)))]
    data = bytearray(_valid(name))
    for _ in range(int(rng.integers(1, 5))):
        # Half of the damage lies at the head, where the structure of a file is told.
        reach = len(data) if rng.random() < 0.5 else min(len(data), 200)
        at = int(rng.integers(reach)) if reach else 0
        junk = rng.integers(0, 256, int(rng.integers(1, 24)), np.uint8).tobytes()
        how = int(rng.integers(7))
        if how == 0:
            data[at : at + 1] = junk[:1]
        elif how == 1:
            data[at : at + len(junk)] = junk
        elif how == 2:
            data[at:at] = junk
        elif how == 3:
            del data[at : at + len(junk)]
        elif how == 4:
            del data[int(rng.integers(len(data) + 1)) :]
        elif how == 5:
            data[at : at + 4] = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\1"])
        else:
            other = _valid(names[int(rng.integers(len(names)))])
            begin = int(rng.integers(len(other)))
            data[at:at] = other[begin : begin + 64]
    return name, bytes(data)


_KEPT: dict[str, bytes] = {}


def _valid(name: str) -> bytes:
    if name not in _KEPT:
        _KEPT[name] = VALID[name]()
    return _KEPT[name]
