"""Images of your own: a folder, a split list, a manifest or a saved Hugging Face data set, on disk or at s3://."""

import hashlib
import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from lfm.config.schema import DataConfig
from lfm.data.sources.base import NOWHERE, SPLITS, TEST, TRAIN, Encoded, Files, Index, Source
from lfm.data.sources.class_names import named, number_classes
from lfm.data.sources.image_folder import from_folder, scan
from lfm.data.sources.image_listing import Found, absolute, resolve, stamps
from lfm.data.sources.manifest import MANIFESTS, Rows, read_lists, read_manifest, read_metadata
from lfm.data.sources.saved_dataset import is_arrow, read_arrow
from lfm.data.sources.test_split import READERS, choose_test, digests
from lfm.data.sources.whole_numbers import fraction, whole_number
from lfm.data.sources.without_test import settle
from lfm.errors import InputError, counted
from lfm.progress import say
from lfm.storage import s3
from lfm.storage.import_closure import source_hash
from lfm.storage.store import build_once

KINDS = (
    "an image folder ROOT/CLASS/*.jpg or ROOT/{train,val,test}/CLASS/*.jpg (data.source=/data/birds), "
    "a prefix in S3 with the same layout (data.source=s3://bucket/birds), "
    "a split list of lines 'PATH LABEL' (data.source=/data/birds/train.txt, with val.txt, test.txt next to it), "
    "a manifest with the columns path, label and maybe split (data.source=/data/birds.csv, .tsv, .parquet or .jsonl, "
    "or at s3://), Parquet files with the images inside (the file, or a folder as the Hugging Face hub lays it out), "
    "or a folder that Hugging Face datasets saved (data.source=/data/birds-arrow)"
)
Index8: TypeAlias = NDArray[np.int8]
COARSE = 20
"""With fewer test images a class, one image moves its accuracy by five points or more."""


def load_custom(config: DataConfig) -> Source:
    """Images of an image folder, split list, manifest or saved data set (`KINDS`); without a test split one is made.

    Args:
        config: `source`, `images`, `class_names`, `class_depth`, `test_per_class`, `test_share` and `without_test` are
            read.

    Raises:
        InputError: no such source, or an error in it: the file, row, rule and fix are named.
    """
    if not config.source:
        raise InputError(f"data.source is empty; set it to {KINDS}")
    source = absolute(config.source)
    suffix = posixpath.splitext(source)[1].lower()
    remote = s3.is_remote(source)
    images: Encoded
    if not remote and is_arrow(Path(source)):
        _refuse_idle(config, "a saved data set", "images", "class_depth")
        images, label_N, split_N, classes, checksum = read_arrow(Path(source))
        classes = named(config, classes)
    elif packed := _packed(source, suffix):
        from lfm.data.sources.parquet_images import read_packed

        _refuse_idle(config, "Parquet with images inside", "images", "class_depth")
        images, label_N, split_N, classes, checksum = read_packed(config, source, packed)
    else:
        found = _find(config, source, suffix, remote)
        label_N, classes = number_classes(config, found)
        images, split_N = Files(found.path, found.stamp), np.array(found.split, np.int8)
        checksum = _checksum(found, label_N, split_N, classes)
    if not (split_N == TRAIN).any():
        raise InputError(f"{source} has no training images; give some the split train")
    _refuse_case(source, label_N, split_N, classes)
    share = 0.0
    if not (split_N == TEST).any():
        share = config.test_share
        split_N = _made_test(config, images, label_N, split_N, classes, checksum)
        _say_made(source, label_N, split_N)
    elif config.test_per_class or config.test_share != DataConfig().test_share:
        field = "test_per_class" if config.test_per_class else "test_share"
        raise InputError(
            f"{source} has a test split, so data.{field} has no effect; leave it out, or take the split away"
        )
    result = settle(config, Source(images, label_N, split_N, classes, checksum, test_share=share))
    count = ", ".join(f"{(result.split_N == k).sum():,} {name}" for k, name in enumerate(SPLITS))
    say(
        f"{counted(len(result.images), 'image')} of {counted(len(result.classes), 'class', 'classes')} from {source}: "
        f"{count}"
    )
    result.check()
    return result


def _refuse_case(source: str, label_N: Index, split_N: NDArray[np.int8], classes: Sequence[str]) -> None:
    """Raises InputError for two classes that differ in case alone and have no split in common: one, spelt twice."""
    spelt: dict[str, int] = {}
    for k, name in enumerate(classes):
        other = spelt.setdefault(name.strip().casefold(), k)
        if other == k:
            continue
        splits = [[SPLITS[s] for s in np.unique(split_N[label_N == i]) if s != NOWHERE] for i in (other, k)]
        if set(splits[0]).isdisjoint(splits[1]):
            where = [f"{classes[i]!r} (in {' and '.join(of)})" for i, of in zip((other, k), splits, strict=True)]
            raise InputError(
                f"{source}: the classes {' and '.join(where)} differ in case alone and have no split in common, so "
                f"they look like one class; give both the same name"
            )


def _refuse_idle(config: DataConfig, kind: str, *fields: str) -> None:
    """Raises InputError where one of these fields is set, which are without effect for this kind of source."""
    for field in fields:
        if getattr(config, field):
            raise InputError(f"data.{field} has no effect where data.source is {kind}; leave it out")


def _say_made(source: str, label_N: Index, split_N: NDArray[np.int8]) -> None:
    count_C = np.bincount(label_N[split_N == TEST])
    given = count_C[count_C > 0].tolist() or [0]
    least, most = min(given), max(given)
    span = f"{most}" if least == most else f"{least} to {most}"
    say(f"{source} has no test split: of each class, images chosen by their content are one now ({span} a class)")
    if spare := int((split_N == NOWHERE).sum()):
        more = counted(spare, "more image of larger classes is", "more images of larger classes are")
        say(
            f"{more} neither trained on nor scored, so that the test split stays "
            f"when images are added; a smaller data.test_share leaves fewer out"
        )
    if least < COARSE:
        few = counted(least, "test image a class makes", "test images a class make")
        say(f"warning: {few} coarse scores; bring a test split or more images")


def _made_test(
    config: DataConfig, images: Encoded, label_N: Index, split_N: Index8, classes: tuple[str, ...], checksum: str
) -> Index8:
    """The splits with a test split made by content; no class's test images are all unreadable while others are not.

    A damaged image never trains, so it may stand in the training split, where the build lists it.
    """
    digest_N = _kept_digests(images, checksum)

    def choose() -> Index8:
        return choose_test(digest_N, label_N, split_N, classes, config.test_share, config.test_per_class)

    def build(aside: Path) -> None:
        while unreadable := _without_good(images, label_N, choose(), len(classes), config.max_megapixels):
            for i in unreadable:
                digest_N[i] = b""
        np.save(aside / "split.npy", choose())

    how = [config.test_share, config.test_per_class, config.max_megapixels]
    code = source_hash("lfm.data.sources.test_split")
    folder, _ = build_once("test-split", {"source": checksum, "how": how, "code": code}, build)
    return np.asarray(np.load(folder / "split.npy", allow_pickle=False))


def _without_good(images: Encoded, label_N: Index, split_N: Index8, classes: int, limit: float) -> list[int]:
    """The test images of classes of which none can be decoded; where the first of a class can, no more are read."""
    from lfm.data.decoding import BadImageError, look

    def bad_of(rows: list[int]) -> list[int]:
        for row in rows:
            try:
                look(images.read(row), limit)
            except (BadImageError, OSError):
                continue
            return []
        return rows

    of_class: list[list[int]] = [[] for _ in range(classes)]
    for row in np.flatnonzero(split_N == TEST).tolist():
        of_class[label_N[row]].append(row)
    with ThreadPoolExecutor(READERS) as pool:
        return [row for rows in pool.map(bad_of, of_class) for row in rows]


def _kept_digests(images: Encoded, checksum: str) -> list[bytes]:
    """sha256 of each image, empty where it cannot be read; read once for all runs on the same files."""
    missing = bytes(32)

    def build(aside: Path) -> None:
        joined = b"".join(digest or missing for digest in digests(images))
        np.save(aside / "digests.npy", np.frombuffer(joined, np.uint8).reshape(-1, 32))

    folder, _ = build_once("digests", {"source": checksum}, build)
    found = [row.tobytes() for row in np.load(folder / "digests.npy", allow_pickle=False)]
    return [b"" if digest == missing else digest for digest in found]


def _packed(source: str, suffix: str) -> list[str]:
    """Parquet files with the images inside, if the source is such."""
    if suffix != ".parquet" and (s3.is_remote(source) or not Path(source).is_dir()):
        return []
    from lfm.data.sources.parquet_images import packed_files

    return packed_files(source)


def _find(config: DataConfig, source: str, suffix: str, remote: bool) -> Found:
    if (remote and suffix not in (".txt", *MANIFESTS)) or Path(source).is_dir():
        scanned = scan(source)
        if not config.class_depth and scanned.labelled_by_metadata():
            return _from_tables(config, f"{source}/metadata", read_metadata(source, scanned.metadata()))
        _refuse_idle(config, "an image folder", "images")
        return from_folder(scanned, config.class_depth)
    if Path(source).exists() or remote:
        _refuse_idle(config, "a list", "class_depth")
    if suffix == ".txt":
        return _from_tables(config, source, read_lists(source))
    if suffix in MANIFESTS:
        return _from_tables(config, source, [read_manifest(source, suffix)])
    if Path(source).exists():
        raise InputError(f"{source} is of no known kind; data.source must be {KINDS}")
    raise InputError(f"{source} does not exist; correct data.source: it must be {KINDS}")


def _from_tables(config: DataConfig, source: str, tables: list[Rows]) -> Found:
    base = absolute(config.images) if config.images else source.rpartition("/")[0]
    starts = np.cumsum([0, *(len(table.path) for table in tables)])

    def where(i: int) -> str:
        k = int(np.searchsorted(starts, i, side="right")) - 1
        table = tables[k]
        return f"{table.file} {table.unit} {table.place[i - int(starts[k])]}"

    name = [path for table in tables for path in table.path]
    path = [resolve(base, each) for each in name]
    if len(set(path)) < len(path):
        first: dict[str, int] = {}
        for i, each in enumerate(path):
            if first.setdefault(each, i) != i:
                raise InputError(
                    f"{where(i)}: {name[i]!r} is listed already in {where(first[each])}; an image has one class and "
                    f"one split: remove one of the two"
                )
    label = [label for table in tables for label in table.label]
    split = [split for table in tables for split in table.split]
    plain = {each: whole_number(each) for each in set(label)}
    numbers = None not in plain.values()
    if numbers:
        label = [str(plain[each]) for each in label]
    elif all(k is not None or fraction(each) for each, k in plain.items()):
        i = next(i for i, each in enumerate(label) if plain[each] is None)
        raise InputError(f"{where(i)}: label {label[i]!r} is no whole number; number the classes from 0, or name them")
    words = tables[0].unit == "line"  # the label of a line is one word
    raw = [table.raw for table in tables]
    return Found(path, name, stamps(path), label, split, where, words, numbers, raw)


def _checksum(found: Found, label_N: Index, split_N: NDArray[np.int8], classes: tuple[str, ...]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for text in (found.name, found.stamp, classes):
        digest.update("\0".join(text).encode(errors="surrogateescape") + b"\1")
    for part in (label_N.tobytes(), split_N.tobytes(), *found.raw):
        digest.update(part + b"\1")
    return digest.hexdigest()
