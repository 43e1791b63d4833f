"""CIFAR's published forms, written by hand: binary records and Python 2 pickles, in archives."""

import io
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfm.data.sources.cifar_files import CIFAR10, CIFAR100, Cifar, Layout

TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
HUNDRED = [f"kind_of_{k}" for k in range(99)] + ["aquarium_fish"]
Batch = tuple[NDArray[np.uint8], list[int]]


def py2(value: Any) -> bytes:
    """What Python 2's cPickle wrote at protocol 2: strings are byte strings, arrays name numpy.core.multiarray."""
    if isinstance(value, dict):
        return b"}(" + b"".join(py2(key) + py2(item) for key, item in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(py2, value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(py2, value)) + b"t"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, str | bytes):
        raw = value.encode() if isinstance(value, str) else value
        return b"U" + bytes([len(raw)]) + raw if len(raw) < 256 else b"T" + struct.pack("<i", len(raw)) + raw
    assert isinstance(value, np.ndarray)
    return py2_array(value.shape, py2_dtype("u1"), not value.flags.c_contiguous, value.tobytes("A"))


def py2_dtype(code: str) -> bytes:
    minus = struct.pack("<i", -1)
    return b"cnumpy\ndtype\n" + py2((code, 0, 1)) + b"R(K\x03U\x01|NNNJ" + minus + b"J" + minus + b"K\x00tb"


def py2_array(shape: tuple[int, ...], dtype: bytes, columns_first: bool, raw: bytes) -> bytes:
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + py2((0,)) + py2("b") + b"tR"
    return made + b"(K\x01" + py2(shape) + dtype + py2(columns_first) + py2(raw) + b"tb"


def pickled(value: Any) -> bytes:
    return b"\x80\x02" + py2(value) + b"."


def names_of(cifar: Cifar) -> list[str]:
    return TEN if cifar is CIFAR10 else HUNDRED


def layout(cifar: Cifar, form: str) -> Layout:
    return cifar.python if form == "python" else cifar.binary


def members(cifar: Cifar, form: str, train: list[Batch], test: Batch) -> dict[str, bytes]:
    """Name -> bytes of every file of one form."""
    names, at = names_of(cifar), layout(cifar, form)
    files: dict[str, bytes] = {}
    for name, (plane_NP, labels) in zip((*at.train, at.test), (*train, test), strict=True):
        if form == "binary":
            coarse = [[label % 20] if cifar is CIFAR100 else [] for label in labels]
            files[name] = b"".join(bytes([*coarse[i], label]) + plane_NP[i].tobytes() for i, label in enumerate(labels))
        else:
            files[name] = pickled(
                {"batch_label": name, "coarse_labels": [0] * len(labels), cifar.labels_key: labels, "data": plane_NP}
            )
    if form == "binary":
        files[at.names] = "".join(f"{name}\n" for name in [*names, *([""] if cifar is CIFAR10 else [])]).encode()
    else:
        files[at.names] = pickled({"num_vis": 3072, "coarse_label_names": ["fish"], cifar.names_key: names})
    return files


def small(cifar: Cifar, seed: int = 0) -> tuple[list[Batch], Batch]:
    """Batches of the published number, each class 4 times in training and once in test, shuffled."""
    rng = np.random.default_rng(seed)
    classes = len(names_of(cifar))

    def batches(label_N: NDArray[np.int64], parts: int) -> list[Batch]:
        label_N = rng.permutation(label_N)
        return [
            (rng.integers(0, 256, (len(part), 3072), dtype=np.uint8), part.tolist())
            for part in np.array_split(label_N, parts)
        ]

    label_C = np.arange(classes)
    return batches(np.repeat(label_C, 4), len(cifar.python.train)), batches(label_C, 1)[0]


def write_archive(path: Path, folder: str, files: dict[str, bytes], *more: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, raw in (*((f"{folder}/{name}", raw) for name, raw in files.items()), *more):
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return path
