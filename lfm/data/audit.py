"""What is wrong, doubtful or uneven in a data set artifact, from its columns; only thumbnails open images.

Letters in the names give shapes: N images of all splits, U distinct hashes, P pairs of them, G groups of images,
M some of the images or hashes.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from lfm.data.artifact import read_info
from lfm.data.class_name_audit import SHOWN, cleaned, name_problems
from lfm.data.decoding import ODD, BadImageError, decode
from lfm.data.depth import grey_of, ranges_in
from lfm.data.near_duplicates import NEAR, Hashes, chained, close_pairs
from lfm.data.sources.base import SPLITS, Index
from lfm.data.table import Table, open_table
from lfm.storage.artifact import NOTES

NEAR_SIDE = 48
"""Images smaller than this have too little in them for their hashes to tell them apart."""
SHOWN_GROUPS, SHOWN_IMAGES = 200, 12
THUMBNAIL = 48
OPENED_MEGAPIXELS = 25.0


@dataclass(frozen=True)
class Rows:
    """All images of an artifact, the splits one after the other."""

    tables: dict[str, Table]
    classes: Sequence[str]
    start_S: Index
    """Number of the first image of each split."""
    split_N: Index
    """Index into `SPLITS`."""
    label_N: Index

    @classmethod
    def of(cls, folder: Path, classes: Sequence[str]) -> "Rows":
        """Open the Arrow files."""
        tables = {split: open_table(folder, split) for split in SPLITS}
        size_S = [len(table) for table in tables.values()]
        label_N = np.concatenate([table.column("label") for table in tables.values()]).astype(np.int64)
        return cls(tables, classes, np.cumsum([0, *size_S[:-1]]), np.repeat(np.arange(len(SPLITS)), size_S), label_N)

    def numbers(self, name: str) -> NDArray[Any]:
        """A column of numbers. (N,)."""
        return np.concatenate([table.column(name) for table in self.tables.values()])

    def codes(self, name: str) -> tuple[Index, list[str]]:
        """A column of strings: an index (N,) into its distinct values, and those values."""
        chunks = [batch.column(name) for table in self.tables.values() for batch in table.batches]
        # 64-bit offsets: 33 million checksums do not fit into one array of 32.
        coded = pa.chunked_array(chunks, pa.string()).cast(pa.large_string()).combine_chunks().dictionary_encode()
        return coded.indices.to_numpy().astype(np.int64), coded.dictionary.to_pylist()

    def image(self, n: int) -> dict[str, Any]:
        """Where image n is: `split`, `row` in it, `class`, file `name`."""
        k = int(self.split_N[n])
        row = int(n - self.start_S[k])
        return {
            "split": SPLITS[k],
            "row": row,
            "class": self.classes[int(self.label_N[n])],
            "name": self.tables[SPLITS[k]].name(row),
        }


def audit(folder: Path) -> dict[str, Any]:
    """Counts, sizes, duplicates, odd and bad images and doubtful names of an artifact made by `lfm.data.write`.

    Returns:
        JSON-like: `images`, `splits`, `classes`, `counts` (of each split and class), `sizes`, `modes`, `depth` (rule
        and results of deep images), `exact` and `near` (duplicates), `odd`, `bad`, `names`, `cleaned` (name -> better
        one). Lists are cut, their totals are not.

    Raises:
        InputError: the folder is no data set artifact.
    """
    info = read_info(folder)
    classes = info["classes"]
    rows = Rows.of(folder, classes)
    side_N = np.minimum(rows.numbers("width"), rows.numbers("height"))
    counts = {
        split: np.bincount(table.column("label").astype(np.int64), minlength=len(classes))
        for split, table in rows.tables.items()
    }
    mode_N, modes = rows.codes("mode")
    file_N, files = rows.codes("sha256")
    bad = json.loads((folder / NOTES / "bad.json").read_text())
    return {
        "images": len(rows.label_N),
        "splits": {split: {"images": int(n.sum()), "classes": int((n > 0).sum())} for split, n in counts.items()},
        "classes": list(classes),
        "counts": {split: count_C.tolist() for split, count_C in counts.items()},
        "sizes": _sizes(rows),
        "modes": dict(zip(modes, np.bincount(mode_N, minlength=len(modes)).tolist(), strict=True)),
        "depth": {"rule": info["depth"], "results": _greys(rows, info)},
        "exact": exact_duplicates(rows, file_N, len(files)),
        "near": near_duplicates(
            rows, file_N, np.where(side_N >= NEAR_SIDE, rows.numbers("dhash"), 0).astype(np.uint64)
        ),
        "odd": _odd(rows),
        "bad": {"images": len(bad), "first": bad[:SHOWN]},
        "names": name_problems(classes),
        "cleaned": cleaned(classes),
    }


def _sizes(rows: Rows) -> dict[str, Any]:
    width_N, height_N = (rows.numbers(name).astype(np.int64) for name in ("width", "height"))
    found: dict[str, Any] = {
        name: {"min": int(value_N.min()), "median": float(np.median(value_N)), "max": int(value_N.max())}
        for name, value_N in (("width", width_N), ("height", height_N))
    }
    return found | {"distinct": len(np.unique((width_N << 32) | height_N))}


def _odd(rows: Rows) -> dict[str, Any]:
    code_N, together = rows.codes("odd")
    found = {}
    for kind, meaning in ODD.items():
        hit_N = np.flatnonzero(np.array([kind in words.split() for words in together])[code_N])
        first = [rows.image(int(n)) for n in hit_N[:5]]
        found[kind] = {"meaning": meaning, "images": len(hit_N), "first": first}
    return found


def _greys(rows: Rows, info: Mapping[str, Any]) -> dict[str, Any]:
    """Deep images that come out black, white, black and white alone, or much cut off: how many, and the first."""
    code_N, texts = rows.codes("deep")
    deep_N = np.flatnonzero(np.array([text != "" for text in texts])[code_N])
    if not len(deep_N):
        return {}
    found = grey_of([texts[code] for code in code_N[deep_N]], ranges_in(info))
    return {
        result: {"images": int(hit_M.sum()), "first": [rows.image(int(n)) for n in deep_N[hit_M][:5]]}
        for result, hit_M in found.items()
    }


# --- duplicates ---


def exact_duplicates(rows: Rows, file_N: Index, files: int) -> dict[str, Any]:
    """Images of the same bytes.

    Args:
        rows: all images of the artifact.
        file_N: index of each image's file among the distinct files.
        files: number of distinct files.

    Returns:
        As `grouped`, and `in_train`: images of each other split that are training images too.
    """
    split_N = rows.split_N
    trained = np.zeros(files, bool)
    trained[file_N[split_N == 0]] = True
    leaked_N = trained[file_N]
    twice = np.bincount(file_N, minlength=files) > 1
    return grouped(rows, np.where(twice[file_N], file_N, -1)) | {
        "in_train": {split: int(leaked_N[split_N == k].sum()) for k, split in enumerate(SPLITS) if k}
    }


def near_duplicates(rows: Rows, file_N: Index, hash_N: Hashes) -> dict[str, Any]:
    """Different files that look alike: hashes at most `NEAR` bits apart, chained into groups.

    Args:
        rows: all images of the artifact.
        file_N: index of each image's file among the distinct files; equal files have equal hashes.
        hash_N: 64-bit difference hashes. 0 says that an image is flat, or too small to tell, and nothing more.

    Returns:
        As `grouped`, and `distance`, `flat` (images of hash 0, left out), `pairs` (of different files), and
        `not_compared`: images for which closeness was not searched to the end. Where it is 0 the totals are exact.
    """
    hash_U, place_N = np.unique(hash_N, return_inverse=True)
    first = np.unique(file_N, return_index=True)[1]
    files_U = np.bincount(place_N[first], minlength=len(hash_U))
    flat_U = hash_U == 0
    offset = int(flat_U.sum())  # hash 0, if there, is the first
    pair_P2, skipped_M = close_pairs(hash_U[offset:])
    pair_P2 = pair_P2 + offset
    group_N = chained(len(hash_U), pair_P2)[place_N]
    # A group of one file alone is a matter of `exact_duplicates`.
    low_U, high_U = np.full(len(hash_U), file_N.max() + 1), np.full(len(hash_U), -1)
    np.minimum.at(low_U, group_N, file_N)
    np.maximum.at(high_U, group_N, file_N)
    several_N = (low_U < high_U)[group_N] & ~flat_U[place_N]
    m = files_U * ~flat_U
    skipped_U = np.concatenate([np.zeros(offset, bool), skipped_M])
    return grouped(rows, np.where(several_N, group_N, -1)) | {
        "distance": NEAR,
        "flat": int(flat_U[place_N].sum()),
        "pairs": int((m * (m - 1) // 2).sum() + (m[pair_P2[:, 0]] * m[pair_P2[:, 1]]).sum()),
        "not_compared": int(skipped_U[place_N].sum()),
    }


def grouped(rows: Rows, group_N: Index) -> dict[str, Any]:
    """Groups of images, the worst first.

    Args:
        rows: all images of the artifact.
        group_N: number of the group that each image is in, -1 for none.

    Returns:
        `groups`, `images` in them, groups `across_splits`, `across_labels` and `across` any of the two, and `shown`:
        the first groups, each with its `size`, both flags, and some `images`, of every split and class first.
    """
    member = np.flatnonzero(group_N >= 0)
    order = member[np.argsort(group_N[member], kind="stable")]
    start_G = np.flatnonzero(np.diff(group_N[order], prepend=-1))
    size_G = np.diff(start_G, append=len(order))

    def across(value_N: Index) -> NDArray[np.bool_]:
        if not len(start_G):
            return np.zeros(0, bool)
        value = value_N[order]
        return np.asarray(np.minimum.reduceat(value, start_G) != np.maximum.reduceat(value, start_G))

    splits_G, labels_G = across(rows.split_N), across(rows.label_N)
    worst = np.lexsort((start_G, -size_G, -(splits_G.astype(int) + labels_G)))[:SHOWN_GROUPS]
    shown = [
        {
            "size": int(size_G[g]),
            "across_splits": bool(splits_G[g]),
            "across_labels": bool(labels_G[g]),
            "images": [rows.image(int(n)) for n in _varied(rows, order[start_G[g] :][: size_G[g]])],
        }
        for g in worst
    ]
    return {
        "groups": len(size_G),
        "images": len(order),
        "across_splits": int(splits_G.sum()),
        "across_labels": int(labels_G.sum()),
        "across": int((splits_G | labels_G).sum()),
        "shown": shown,
    }


def _varied(rows: Rows, member_M: Index) -> list[Any]:
    """Some of the images of a group, one of each split and class before any other."""
    kind_M = rows.split_N[member_M] * len(rows.classes) + rows.label_N[member_M]
    first = np.sort(np.unique(kind_M, return_index=True)[1])
    return list(dict.fromkeys([*member_M[first][:SHOWN_IMAGES], *member_M[:SHOWN_IMAGES]]))[:SHOWN_IMAGES]


# --- thumbnails ---


def thumbnails(folder: Path, found: dict[str, Any], most: int = 60) -> dict[str, str]:
    """Small pictures of the duplicates that are shown: one of each group of equal files, up to four of those alike.

    Args:
        folder: folder of the artifact.
        found: what `audit` returned.
        most: pictures at most, of both kinds together.

    Returns:
        "SPLIT/ROW" -> data: URI of a JPEG at most `THUMBNAIL` pixels a side.
    """
    equal = [group["images"][0] for group in found["exact"]["shown"]][: most // 2]
    alike = [image for group in found["near"]["shown"] for image in group["images"][:4]]
    tables, ranges = {split: open_table(folder, split) for split in SPLITS}, ranges_in(read_info(folder))
    pictures: dict[str, str] = {}
    for image in [*equal, *alike]:
        key = f"{image['split']}/{image['row']}"
        if len(pictures) == most or key in pictures:
            continue
        try:
            encoded = tables[image["split"]].encoded(image["row"])
            small = decode(encoded, image["name"], OPENED_MEGAPIXELS, ranges=ranges)
        except BadImageError:  # too large to open for a thumbnail
            continue
        small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
        out = io.BytesIO()
        small.save(out, "jpeg", quality=70)
        pictures[key] = "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
    return pictures
