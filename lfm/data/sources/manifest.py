"""Split lists and manifests: a row an image, on disk or at s3://."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfm.data.sources.base import TEST, TRAIN, VAL
from lfm.data.sources.split_columns import is_split_column, plain_name, split_of_rows
from lfm.data.sources.split_words import splits_of
from lfm.errors import InputError
from lfm.progress import say
from lfm.storage import s3

SPLITS_IN_FILES = ("val", "validation", "valid", "test", "testing", "eval", "evaluation", "holdout")
PATH_COLUMNS = ("path", "uri", "image", "file", "file_name", "filename")
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
    """The list; where its name holds `train`, in any case, also those named alike for the other splits.

    Train.txt has Test.txt and Valid.txt next to it, training_list.txt has testing_list.txt; trainval.txt, which holds
    the validation images, only test.txt.
    """
    tables = [_read_list(source, TRAIN)]
    return tables + [_read_list(other, split) for other, split in _beside(source).items()]


def _beside(source: str) -> dict[str, int]:
    """The files named as the source, with another split's word for its `train`; and their splits."""
    folder, _, name = source.rpartition("/")
    match = re.fullmatch("(.*)(trainval|train_val|training|train)(.*)", name, re.IGNORECASE | re.DOTALL)
    if match is None:
        return {}
    before, train, after = match.groups()
    spell = next((spelled for spelled in (str.lower, str.upper, str.title) if spelled(train) == train), str.lower)
    word_of = {f"{before}{spell(word)}{after}": word for word in SPLITS_IN_FILES}
    if s3.is_remote(source):
        found = {other: word for other, word in word_of.items() if s3.exists(f"{folder}/{other}")}
    else:
        there = {path.name for path in Path(folder).iterdir()}
        loose = {other.casefold(): word for other, word in word_of.items()}
        found = {other: word for other, word in word_of.items() if other in there}
        found |= {
            other: word
            for other in sorted(there - found.keys())
            if (word := loose.get(other.casefold(), "")) and word not in found.values()
        }
    split_of = splits_of(["trainval" if "val" in train.lower() else "train", *found.values()])
    wanted = (TEST,) if "val" in train.lower() else (VAL, TEST)
    splits = {f"{folder}/{other}": split_of[word] for other, word in found.items()}
    return {other: split for other, split in splits.items() if split is not None and split in wanted}


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
    if suffix in (".csv", ".tsv"):
        _check_separator(source, raw, suffix)
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
    wanted = [name for name in names if is_split_column(name)]
    if twice := next((name for name in wanted if names.count(name) > 1), ""):
        raise InputError(f"{source} has {names.count(twice)} columns {twice}; rename or remove one")
    split = split_of_rows(source, {name: table.column(name) for name in wanted}, place)
    for other in () if split else _beside(source):
        say(f"warning: {other} is next to {source} and is not used; put its rows there, with a column split")
    return Rows(source, "row", place, path, label, split or [TRAIN] * len(path), raw)


def read_metadata(root: str, files: Sequence[tuple[str, str]]) -> list[Rows]:
    """The metadata files below a folder (imagefolder's convention), their paths from that folder.

    Args:
        root: the folder.
        files: each file, and the folder that its paths start from (`train/`); a split if it is called so.

    Raises:
        InputError: as `read_manifest`.
    """
    split_of = splits_of({inner.split("/")[0] for _, inner in files if inner})
    tables = []
    for file, inner in files:
        rows = read_manifest(f"{root}/{file}", file[file.rindex(".") :].lower())
        rows.path = [f"{inner}{path}" for path in rows.path]
        split = split_of.get(inner.split("/")[0])
        rows.split = rows.split if split is None else [split] * len(rows.path)
        tables.append(rows)
    say(f"{root}: the labels are those of {', '.join(file for file, _ in files)}")
    return tables


SEPARATORS = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a bar"}


def _check_separator(source: str, raw: bytes, suffix: str) -> None:
    """Raises InputError where the header has path and label only if another character parts its columns."""
    lines = raw[:65536].decode("utf-8-sig", "replace").splitlines()
    marked = re.fullmatch('"?sep=(.)"?', lines[0]) if lines else None  # as Excel marks it

    def has_both(separator: str) -> bool:
        head = next(csv.reader(lines[1:] if marked else lines, delimiter=separator), [])
        have = {plain_name(name) for name in head}
        return not (have.isdisjoint(PATH_COLUMNS) or have.isdisjoint(LABEL_COLUMNS))

    wanted = "\t" if suffix == ".tsv" else ","
    if has_both(wanted) and not marked:
        return
    found = marked[1] if marked else next((other for other in SEPARATORS if other != wanted and has_both(other)), "")
    if found:
        other = f", or call it {source.rpartition('/')[2][:-4]}.tsv" if found == "\t" and not marked else ""
        line = ", without the line sep=" if marked else ""
        raise InputError(
            f"{source}: its columns are parted by {SEPARATORS.get(found, repr(found))}, those of a {suffix} file by "
            f"{SEPARATORS[wanted]}; save it with {SEPARATORS[wanted]} between columns{line}{other}"
        )


def _used(name: str) -> bool:
    return plain_name(name) in (*PATH_COLUMNS, *LABEL_COLUMNS) or is_split_column(name)


def _parse(raw: bytes, suffix: str) -> tuple[Any, list[str]]:
    """The table, and the names of all columns in the file: of a Parquet file only those that we use are read."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    file = pa.BufferReader(raw)
    if suffix == ".parquet":
        parquet = pa.parquet.ParquetFile(file)
        names = parquet.schema_arrow.names
        return parquet.read(columns=[name for name in names if _used(name)]), names
    if suffix == ".jsonl":
        table = pa.json.read_json(file)
        return table, table.column_names
    delimiter = "\t" if suffix == ".tsv" else ","
    head = next(csv.reader([raw.split(b"\n", 1)[0].decode("utf-8-sig", "replace")], delimiter=delimiter), [])
    table = pa.csv.read_csv(
        file,
        read_options=pa.csv.ReadOptions(use_threads=False),  # only so are the rows of errors numbered
        parse_options=pa.csv.ParseOptions(delimiter=delimiter),
        convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(filter(_used, head), pa.string())),
    )
    return table, table.column_names


def _column(
    source: str, table: Any, have: list[str], names: Sequence[str], place: Sequence[int], fix: str
) -> list[str]:
    """The first column with one of these names in any case, as text; spaces around it go, unless it is a path."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = next((name for name in names if name in map(plain_name, have)), "")
    named = [name for name in have if wanted and plain_name(name) == wanted]
    name = wanted if wanted in named else "".join(named[:1])
    if not name or have.count(name) > 1 or (name != wanted and len(named) > 1):
        fault = f"has no column {' or '.join(names[:4])}" if not name else f"has {len(named)} columns {wanted}"
        raise InputError(f"{source} {fault} (its columns: {', '.join(have)}); rename or add it: {fix}")
    column = table.column(name)
    for other in (other for other in have if plain_name(other) in names and other != name):
        if column.to_pylist() != table.column(other).to_pylist():
            what = "its class" if wanted in LABEL_COLUMNS else "its path"
            raise InputError(
                f"{source} has the columns {name} and {other}, which differ, and either could give each image {what}; "
                "rename the one that does not"
            )
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    textual = any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))
    if pa.types.is_floating(kind) and wanted in LABEL_COLUMNS and _all_whole(column):
        column = column.cast(pa.int64())
        kind = column.type
    whole = pa.types.is_integer(kind) and wanted in LABEL_COLUMNS
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
        must = "text or whole numbers" if wanted in LABEL_COLUMNS else "text"
        raise InputError(f"{source}: column {name} holds {kind}, it must be {must}; {fix}")
    values: list[str] = (column if wanted in PATH_COLUMNS else trimmed).to_pylist()
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
