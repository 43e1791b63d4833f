"""Split lists and manifests: a row an image, on disk or at s3://."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfm.data.sources.base import TEST, TRAIN, VAL
from lfm.errors import InputError
from lfm.storage import s3

SPLIT_NAMES = {"train": TRAIN, "val": VAL, "validation": VAL, "test": TEST}
PATH_COLUMNS = ("path", "uri", "image", "file")
LABEL_COLUMNS = ("label", "class")
MANIFESTS = (".csv", ".tsv", ".parquet", ".jsonl")


@dataclass
class Rows:
    """The rows of one list or manifest."""

    file: str
    unit: str
    """What a place in the file is called: line or row."""
    place: Sequence[int]
    path: list[str]
    """As written."""
    label: list[str]
    split: list[int]
    raw: bytes


def read_lists(source: str) -> list[Rows]:
    """The list; where its name holds `train`, also those named alike for the other splits."""
    folder, _, name = source.rpartition("/")
    tables = [_read_list(source, TRAIN)]
    before, train, after = name.rpartition("train")
    if train:
        for word in ("val", "validation", "test"):
            other = f"{folder}/{before}{word}{after}"
            if s3.exists(other) if s3.is_remote(other) else Path(other).is_file():
                tables.append(_read_list(other, SPLIT_NAMES[word]))
    return tables


def _read_list(source: str, split: int) -> Rows:
    raw = read_file(source)
    try:
        lines = raw.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not UTF-8 text; save it as UTF-8") from error
    place, path, label = [], [], []
    for number, line in enumerate(lines, 1):
        words = line.strip().rsplit(None, 1)
        if len(words) == 2:
            place.append(number)
            path.append(words[0])
            label.append(words[1])
        elif words:
            raise InputError(f"{source} line {number}: {line.strip()!r} has no label; write 'PATH LABEL'")
    if not path:
        raise InputError(f"{source} has no rows; write a line 'PATH LABEL' for each image")
    return Rows(source, "line", place, path, label, [split] * len(path), raw)


def read_manifest(source: str, suffix: str) -> Rows:
    """The rows of a .csv, .tsv, .parquet or .jsonl file.

    Raises:
        InputError: not readable, no rows, a column or a value is missing; file and row are named.
    """
    import pyarrow as pa

    raw = read_file(source)
    if not raw.strip():
        raise InputError(f"{source} has no rows; give it the columns path and label, and a row for each image")
    try:
        table, names = _parse(raw, suffix)
    except (pa.ArrowException, OSError, ValueError) as error:
        # JSON rows are counted from 0 there, the rest from 1
        text = re.sub(r"in row (\d+)", lambda match: f"in row {int(match[1]) + 1}", " ".join(str(error).split()))
        raise InputError(f"{source} cannot be read as {suffix[1:]} ({text[:200]}); correct that row or file") from error
    place = range(2, len(table) + 2) if suffix in (".csv", ".tsv") else range(1, len(table) + 1)  # row 1: the header
    if not len(table):
        raise InputError(f"{source} has no rows; add a row for each image")
    path = _column(source, table, names, PATH_COLUMNS, place, "give each row the path of its image")
    label = _column(source, table, names, LABEL_COLUMNS, place, "give each image its class")
    if "split" not in names:
        return Rows(source, "row", place, path, label, [TRAIN] * len(path), raw)
    words = _column(source, table, names, ("split",), place, "use train, val or test")
    split = [SPLIT_NAMES.get(word.lower(), -1) for word in words]
    if -1 in split:
        i = split.index(-1)
        raise InputError(
            f"{source} row {place[i]}: split {words[i]!r} is not known; use train, val (or validation) or test"
        )
    return Rows(source, "row", place, path, label, split, raw)


def _parse(raw: bytes, suffix: str) -> tuple[Any, list[str]]:
    """The table, and the names of all columns in the file: of a Parquet file only those that we use are read."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    columns = (*PATH_COLUMNS, *LABEL_COLUMNS, "split")
    file = pa.BufferReader(raw)
    if suffix == ".parquet":
        parquet = pa.parquet.ParquetFile(file)
        names = parquet.schema_arrow.names
        return parquet.read(columns=[name for name in names if name in columns]), names
    if suffix == ".jsonl":
        table = pa.json.read_json(file)
        return table, table.column_names
    table = pa.csv.read_csv(
        file,
        read_options=pa.csv.ReadOptions(use_threads=False),  # only so are the rows of errors numbered
        parse_options=pa.csv.ParseOptions(delimiter="\t" if suffix == ".tsv" else ","),
        convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string())),
    )
    return table, table.column_names


def _column(
    source: str, table: Any, have: list[str], names: Sequence[str], place: Sequence[int], fix: str
) -> list[str]:
    """The first column with one of these names, as text; spaces around it go, unless it is a path."""
    import pyarrow as pa
    import pyarrow.compute as pc

    name = next((name for name in names if name in have), None)
    if name is None or have.count(name) > 1:
        fault = f"has no column {' or '.join(names)}" if name is None else f"has {have.count(name)} columns {name}"
        raise InputError(f"{source} {fault} (its columns: {', '.join(have)}); rename or add it: {fix}")
    column = table.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    textual = any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))
    if pa.types.is_floating(kind) and name in LABEL_COLUMNS and _all_whole(column):
        column = column.cast(pa.int64())
        kind = column.type
    whole = pa.types.is_integer(kind) and name in LABEL_COLUMNS
    if textual or whole:
        column = column.cast(pa.string())
        trimmed = pc.utf8_trim_whitespace(column)
        empty = pc.fill_null(pc.equal(trimmed, ""), True)
    else:
        trimmed, empty = column, pc.is_null(column)
    i = pc.index(empty, True).as_py()
    if i >= 0:
        raise InputError(f"{source} row {place[i]}: {name} is empty; {fix}")
    if not (textual or whole):
        wanted = "text or whole numbers" if name in LABEL_COLUMNS else "text"
        raise InputError(f"{source}: column {name} holds {kind}, it must be {wanted}; {fix}")
    values: list[str] = (column if name in PATH_COLUMNS else trimmed).to_pylist()
    return values


def _all_whole(column: Any) -> bool:
    """Whether these are whole numbers that were written as 0.0, 1.0, 2.0."""
    import pyarrow.compute as pc

    small = pc.less(pc.abs(column), 2.0**53)
    return bool(pc.all(pc.and_(small, pc.equal(column, pc.round(column)))).as_py())


def read_file(source: str) -> bytes:
    """The bytes of a local or s3:// file.

    Raises:
        InputError: it cannot be read.
    """
    if s3.is_remote(source):
        return s3.read(source)
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise unreadable(source, error) from error


def unreadable(name: str, error: OSError) -> InputError:
    """The error for a file that cannot be read."""
    return InputError(f"{name} cannot be read ({error.strerror or error}); correct its path or permissions")
