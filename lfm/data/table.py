"""Images and labels as Arrow files, in the layout of Hugging Face `datasets` (docs/adr/0004).

    train/data-00000-of-00003.arrow ...   columns image {bytes, path}, label, and what decoding found in each image
    train/dataset_info.json, state.json   so that `datasets.load_from_disk` opens the folder
    dataset_dict.json                     names the splits

A split is written in shards by a pool of threads; each shard is written aside and renamed, so a killed build goes on
with the shards it lacks, and memory holds one batch of rows a thread.
"""

import bisect
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from lfm.data.decoding import BadImageError, Look, look
from lfm.data.sources.base import SPLITS, Encoded, Index
from lfm.errors import InputError
from lfm.progress import bar
from lfm.storage.artifact import link

J = TypeVar("J")
R = TypeVar("R")
SHARD = 1024
"""Images of a shard: the work that a killed build loses, a thread."""
BATCH_BYTES = 8 << 20
COLUMNS = {
    "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
    "label": pa.int64(),
    "width": pa.int32(),
    "height": pa.int32(),
    "mode": pa.string(),
    "sha256": pa.string(),
    "dhash": pa.uint64(),
    "odd": pa.string(),
    "deep": pa.string(),
}
_NAMES = {"string": "string", "int32": "int32", "int64": "int64", "uint64": "uint64"}


def _features(classes: Sequence[str]) -> dict[str, Any]:
    values = {name: {"dtype": _NAMES[str(kind)], "_type": "Value"} for name, kind in COLUMNS.items() if name != "image"}
    return {"image": {"_type": "Image"}, **values, "label": {"names": list(classes), "_type": "ClassLabel"}}


def _schema(classes: Sequence[str]) -> pa.Schema:
    about = json.dumps({"info": {"features": _features(classes)}})
    return pa.schema(COLUMNS, metadata={"huggingface": about})


def shards(split_rows: dict[str, Index]) -> list[tuple[str, int, Index]]:
    """(split, number, rows of the source) of each shard."""
    return [
        (split, k, rows[start : start + SHARD])
        for split, rows in split_rows.items()
        for k, start in enumerate(range(0, max(len(rows), 1), SHARD))  # a split without images has a file too
    ]


def write_shard(
    path: Path, images: Encoded, rows: Index, label_N: Index, classes: Sequence[str], limit: float
) -> list[str]:
    """Read, check and write some images.

    Args:
        path: of the Arrow file.
        images: the whole source.
        rows: positions in it.
        label_N: labels of the whole source.
        classes: names, for the file's schema.
        limit: data.max_megapixels.

    Returns:
        What is wrong with each image that was left out.
    """
    bad: list[str] = []
    schema = _schema(classes)
    held: list[tuple[int, bytes, Look]] = []

    def flush(writer: pa.RecordBatchStreamWriter) -> None:
        if not held:
            return
        columns = {
            "image": pa.array(
                [{"bytes": data, "path": images.name(i).rpartition("/")[2]} for i, data, _ in held], COLUMNS["image"]
            ),
            "label": pa.array(label_N[[i for i, _, _ in held]]),
            "odd": pa.array([" ".join(seen.odd) for _, _, seen in held]),
        }
        for name in ("width", "height", "mode", "sha256", "dhash", "deep"):
            columns[name] = pa.array([getattr(seen, name) for _, _, seen in held], COLUMNS[name])
        writer.write_batch(pa.record_batch([columns[name] for name in COLUMNS], schema=schema))
        held.clear()

    aside = path.with_suffix(".tmp")
    with pa.OSFile(str(aside), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        size = 0
        for i in map(int, rows):
            try:
                data = images.read(i)
                held.append((i, data, look(data, limit)))
            except BadImageError as error:
                bad.append(f"{images.name(i)} {error}")
                continue
            except FileNotFoundError as error:  # a link to nothing; others may pass, so they must not be remembered
                bad.append(f"{images.name(i)} cannot be read ({error.strerror})")
                continue
            except OSError as error:
                raise InputError(
                    f"{images.name(i)} cannot be read ({error.strerror or error}); repair it or leave it out"
                ) from error
            size += len(data)
            if size > BATCH_BYTES:
                flush(writer)
                size = 0
        flush(writer)
    path.with_suffix(".json").write_text(json.dumps(bad))
    aside.rename(path)  # last: a shard that is there is whole
    return bad


def write_table(
    folder: Path,
    work: Path,
    images: Encoded,
    label_N: Index,
    split_rows: dict[str, Index],
    classes: Sequence[str],
    limit: float,
) -> list[str]:
    """Write all splits; what an earlier, killed build left in `work` is kept.

    Args:
        folder: empty; filled. On the file system of `work`.
        work: for finished shards; belongs to this source and selection alone.
        images: the whole source.
        label_N: its labels.
        split_rows: split -> positions in the source.
        classes: names.
        limit: data.max_megapixels.

    Returns:
        What is wrong with each image that was left out.
    """
    jobs = shards(split_rows)
    work.mkdir(parents=True, exist_ok=True)
    bad: list[str] = []
    total = sum(map(len, split_rows.values()))
    with bar(total, "check", "images") as progress, ThreadPoolExecutor(threads()) as pool:

        def run(job: tuple[str, int, Index]) -> tuple[int, list[str]]:
            split, k, rows = job
            path = work / f"{split}-{k:05d}.arrow"
            if path.is_file():
                return len(rows), json.loads(path.with_suffix(".json").read_text())
            return len(rows), write_shard(path, images, rows, label_N, classes, limit)

        for count, wrong in in_order(pool, run, jobs):
            progress.update(count)
            bad += wrong
    for split, rows in split_rows.items():
        parts = max(-(-len(rows) // SHARD), 1)
        target = folder / split
        target.mkdir()
        names = [f"data-{k:05d}-of-{parts:05d}.arrow" for k in range(parts)]
        for k, name in enumerate(names):
            link(work / f"{split}-{k:05d}.arrow", target / name)
        describe(target, split, names, classes)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(split_rows)}))
    return bad


def in_order(pool: ThreadPoolExecutor, run: Callable[[J], R], jobs: Sequence[J]) -> Iterator[R]:
    """Results in the order of the jobs, with no more than a few jobs ahead: memory stays flat.

    On an error the jobs that have not begun are dropped.
    """
    ahead = 2 * pool._max_workers
    todo = iter(jobs)
    running: list[Future[R]] = [pool.submit(run, job) for job in itertools.islice(todo, ahead)]
    try:
        while running:
            done = running.pop(0)
            yield done.result()
            if (job := next(todo, None)) is not None:
                running.append(pool.submit(run, job))
    finally:
        for future in running:
            future.cancel()
        wait(running)


def describe(folder: Path, split: str, names: Sequence[str], classes: Sequence[str]) -> None:
    """The two JSON files next to a split's Arrow files."""
    (folder / "dataset_info.json").write_text(json.dumps({"features": _features(classes)}))
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": split,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": split,
    }
    (folder / "state.json").write_text(json.dumps(state))


def threads() -> int:
    """Threads that read and decode."""
    return len(os.sched_getaffinity(0)) + 1  # one more: some wait for the disk or the store


class Table:
    """A split's Arrow files, memory-mapped: rows are read where they lie.

    Args:
        folder: of a split.
        image: the column of images.

    Raises:
        InputError: it has no Arrow files.
    """

    def __init__(self, folder: Path, image: str = "image") -> None:
        self.image = image
        if not (folder / "state.json").is_file():
            raise InputError(f"{folder} is not a split of a data set artifact; run the prepare step")
        state = json.loads((folder / "state.json").read_text())
        self.batches: list[pa.RecordBatch] = []
        for part in state["_data_files"]:
            with pa.memory_map(str(folder / part["filename"])) as file:
                self.batches += list(pa.ipc.open_stream(file))
        self.starts = [0, *itertools.accumulate(len(batch) for batch in self.batches)]
        self.bytes = [batch.column(image).field("bytes") for batch in self.batches]

    def __len__(self) -> int:
        return self.starts[-1]

    def encoded(self, i: int) -> memoryview:
        """The encoded bytes of image i, not copied."""
        k = bisect.bisect_right(self.starts, i) - 1
        return memoryview(self.bytes[k][i - self.starts[k]].as_buffer())

    def name(self, i: int) -> str:
        """The file name of image i."""
        k = bisect.bisect_right(self.starts, i) - 1
        return str(self.batches[k].column(self.image).field("path")[i - self.starts[k]])

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """A column other than the images."""
        if not self.batches:
            return np.array([], dtype=COLUMNS[name].to_pandas_dtype())
        parts = [batch.column(name).to_numpy(zero_copy_only=False) for batch in self.batches]
        return np.concatenate(parts)


def open_table(folder: Path, split: str) -> Table:
    """A split of a data set artifact."""
    assert split in SPLITS
    return Table(folder / split)
