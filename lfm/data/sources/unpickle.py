"""Pickles of arrays of bytes, read without running anything from them.

The unpickler knows three names of numpy and makes arrays of bytes of them, nothing else.
"""

import io
import pickle  # noqa: TID251  CIFAR is published as pickles; `_Unpickler` runs nothing from them
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfm.errors import InputError


class _Dtype:
    """Stands for numpy's dtype in a pickle; of bytes only."""

    def __init__(self, code: Any, *_: Any) -> None:
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"it holds an array of type {code!r}, and images are of u1")

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like mean nothing for bytes."""


class ByteArray:
    """Stands for numpy's ndarray in a pickle, so that no code of numpy's sees what was not checked."""

    def __init__(self, *_: Any) -> None:
        self.pixels: NDArray[np.uint8] = np.empty(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, columns_first, raw = state
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("it holds an array that is not of plain bytes")
        self.pixels = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if columns_first else "C")


class _Unpickler(pickle.Unpickler):
    """Reads dictionaries, lists, numbers, strings and arrays of bytes; every other name is refused."""

    known = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): ByteArray,
        ("numpy", "ndarray"): "ndarray",  # only an argument of _reconstruct: nothing to call
        ("numpy", "dtype"): _Dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and nothing but arrays of bytes is read")
        return self.known[module, name]


def unpickle(raw: bytes, where: str, fix: str) -> dict[str, Any]:
    """A pickled dictionary with its keys as text.

    Raises:
        InputError: damaged, or asking for anything but arrays of bytes.
    """
    try:
        # Python 2 wrote bytes where it meant text.
        table = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
        return {key.decode("ascii") if isinstance(key, bytes) else key: value for key, value in table.items()}
    except Exception as error:  # a damaged pickle raises nearly anything
        raise InputError(f"{where} is not as published: {error}; {fix}") from error
