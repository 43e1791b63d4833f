"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): where their files come from, and how they are read.

Each is published as binary records and as Python 2 pickles.
"""

import hashlib
import http.client
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from lfm.config.schema import DataConfig
from lfm.data.sources.base import Index, Source
from lfm.data.sources.cifar_files import CIFAR10, CIFAR100, Cifar, Layout
from lfm.data.sources.class_names import named
from lfm.data.sources.downloads import downloads, where_to_put
from lfm.data.sources.unpickle import ByteArray, unpickle
from lfm.errors import InputError, counted
from lfm.progress import bar, say

CONNECT_SECONDS = 10
PIXELS = 3 * 32 * 32


def load_cifar10(config: DataConfig) -> Source:
    """50,000 training and 10,000 test images, 32 x 32 colour, 10 named classes.

    Raises:
        InputError: files missing, truncated, altered, or nowhere to be had.
    """
    return _load(config, CIFAR10)


def load_cifar100(config: DataConfig) -> Source:
    """50,000 training and 10,000 test images, 32 x 32 colour, 100 named classes (the fine labels).

    Raises:
        InputError: files missing, truncated, altered, or nowhere to be had.
    """
    return _load(config, CIFAR100)


def _load(config: DataConfig, cifar: Cifar) -> Source:
    place = Path(config.source) if config.source else downloads(cifar.name)
    found = _find(place, cifar)
    if found is None and not config.source:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_suffix(".lock")):  # another process may be fetching the same file
            found = _find(place, cifar) or _fetch(place, cifar)
    if found is None:
        raise InputError(f"{place} holds no {cifar.title}; {where_to_put(cifar.name)}")
    say(f"{cifar.title} from {found}")
    if found.is_file():
        raw, checksum = _read_archive(found, cifar, config.verify)
    else:
        raw, checksum = _read_folder(found, cifar)
    layout = _layout_of(raw, cifar)
    if layout is None:
        lacking = min((set(form.files) - raw.keys() for form in (cifar.python, cifar.binary)), key=len)
        raise InputError(f"{found} has no {min(lacking)}, so it is not {cifar.title}; {where_to_put(cifar.name)}")
    batch = {name: _read_batch(raw[name], f"{found}: {name}", cifar, layout) for name in (*layout.train, layout.test)}
    train = tuple(np.concatenate(arrays) for arrays in zip(*(batch[name] for name in layout.train), strict=True))
    test = batch[layout.test]
    names = _read_names(raw[layout.names], f"{found}: {layout.names}", cifar, layout)
    source = Source.from_arrays((train[0], train[1]), test, named(config, names), checksum)
    if config.verify:
        for split, label_N, count in (("training", train[1], cifar.train_count), ("test", test[1], cifar.test_count)):
            if np.bincount(label_N).tolist() != [count] * len(names):
                raise InputError(
                    f"{found} has {len(label_N):,} {split} images, and not {count:,} of each of the {len(names)} "
                    f"classes as the published files; {where_to_put(cifar.name)}, or set data.verify=false"
                )
    return source


def _find(place: Path, cifar: Cifar) -> Path | None:
    """The archive, or the folder with the files, in one of the places where people put them."""
    forms = (cifar.python, cifar.binary)
    if place.is_file():
        return place
    archives = [place / form.archive for form in forms if (place / form.archive).is_file()]
    folders = [place / form.folder for form in forms if (place / form.folder).is_dir()]
    itself = [place for form in forms if any((place / name).is_file() for name in form.files)]
    return next(iter(archives + folders + itself), None)


def _layout_of(raw: Mapping[str, bytes], cifar: Cifar) -> Layout | None:
    return next((form for form in (cifar.python, cifar.binary) if raw.keys() >= set(form.files)), None)


def _read_folder(folder: Path, cifar: Cifar) -> tuple[dict[str, bytes], str]:
    """Name -> bytes of the published files in it, and their checksum."""
    names = sorted({*cifar.python.files, *cifar.binary.files})
    raw = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    layout = _layout_of(raw, cifar)
    digest = hashlib.sha256()
    for name in layout.files if layout else ():
        digest.update(hashlib.sha256(raw[name]).digest())
    return raw, digest.hexdigest()


def _read_archive(path: Path, cifar: Cifar, verify: bool) -> tuple[dict[str, bytes], str]:
    """Name -> bytes of the published files in it, and its checksum. Nothing is unpacked to disk.

    Raises:
        InputError: another md5, truncated, no archive, or a file twice.
    """
    fix = f"delete it and {where_to_put(cifar.name)}"
    if verify:
        _check_md5(path, cifar, fix)
    wanted = {*cifar.python.files, *cifar.binary.files}
    raw: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name not in wanted or not member.isfile():
                    continue
                if name in raw:
                    raise InputError(f"{path} holds {name} twice, the published archive once; {fix}")
                file = archive.extractfile(member)
                assert file
                raw[name] = file.read()
        with path.open("rb") as file_:
            checksum = hashlib.file_digest(file_, "sha256").hexdigest()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise InputError(f"{path} is truncated or not a tar archive ({error}); {fix}") from error
    return raw, checksum


def _check_md5(path: Path, cifar: Cifar, fix: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    published = {form.md5: form.archive for both in (CIFAR10, CIFAR100) for form in (both.python, both.binary)}
    right = {form.archive: form.md5 for form in (cifar.python, cifar.binary)}
    if found in right.values():
        return
    if found in published:
        raise InputError(f"{path} is {published[found]}, and {cifar.title} was asked for; {fix}")
    rule = " or ".join(f"{md5} of {name}" for name, md5 in right.items() if name == path.name or path.name not in right)
    raise InputError(f"{path} is truncated or altered: its md5 is {found}, not {rule}; {fix}")


def _read_batch(raw: bytes, where: str, cifar: Cifar, layout: Layout) -> tuple[NDArray[np.uint8], Index]:
    """(N, 32, 32, 3) pixels and (N,) labels of one file."""
    fix = where_to_put(cifar.name)
    if layout is cifar.binary:
        record = cifar.label_bytes + PIXELS
        if not raw or len(raw) % record:
            raise InputError(f"{where} is truncated: {len(raw):,} bytes are not records of {record:,}; {fix}")
        record_NB = np.frombuffer(raw, np.uint8).reshape(-1, record)
        pixel_NP = record_NB[:, cifar.label_bytes :]
        label_N = record_NB[:, cifar.label_bytes - 1]
    else:
        table = unpickle(raw, where, fix)
        data, labels = table.get("data"), table.get(cifar.labels_key)
        if not isinstance(data, ByteArray) or data.pixels.ndim != 2 or data.pixels.shape[1] != PIXELS:
            raise InputError(f"{where} has no array 'data' of {PIXELS:,} bytes per image; {fix}")
        if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 256 for label in labels):
            raise InputError(f"{where} has no list {cifar.labels_key!r} of whole numbers from 0 to 255; {fix}")
        pixel_NP, label_N = data.pixels, np.array(labels, np.uint8)
        if len(label_N) != len(pixel_NP):
            there = f"{counted(len(pixel_NP), 'image')} but {counted(len(label_N), 'label')}"
            raise InputError(f"{where} has {there}; {fix}")
    planes = pixel_NP.reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), label_N.astype(np.int64)


def _read_names(raw: bytes, where: str, cifar: Cifar, layout: Layout) -> list[str]:
    """The class names, in label order."""
    fix = where_to_put(cifar.name)
    try:
        if layout is cifar.binary:
            names = raw.decode("ascii").split()
        else:
            table = unpickle(raw, where, fix)
            names = [name.decode("ascii") if isinstance(name, bytes) else name for name in table[cifar.names_key]]
        return [name.replace("_", " ") for name in names]
    except InputError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{where} does not name the classes ({error!r}); {fix}") from error


def _fetch(place: Path, cifar: Cifar) -> Path:
    """The Python archive from where torchvision takes it, kept in `place`.

    Raises:
        InputError: the network refuses, or the bytes are not the published ones.
    """
    import torchvision.datasets  # knows the address

    url = getattr(torchvision.datasets, cifar.title.replace("-", "")).url
    name = cifar.python.archive
    aside = place / f".{name}.tmp"
    fix = f"put {name} (or the binary one) into {place}, or set data.source"
    say(f"{cifar.title}: fetching {url}")
    try:
        place.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as reply:  # noqa: S310  the address is torchvision's
            size = int(reply.headers.get("Content-Length", 0))
            with aside.open("wb") as file, bar(size, "download", "B") as progress:
                while chunk := reply.read(1 << 18):
                    file.write(chunk)
                    progress.update(len(chunk))
        _check_md5(aside, cifar, fix)
        aside.rename(place / name)
    except (OSError, http.client.HTTPException) as error:
        reason = " ".join(str(error.reason if isinstance(error, urllib.error.URLError) else error).split())
        raise InputError(f"{cifar.title} is not in {place} and {url} cannot be fetched ({reason}); {fix}") from error
    finally:
        aside.unlink(missing_ok=True)
    return place / name
