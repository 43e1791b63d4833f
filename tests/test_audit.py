"""The data report against oracles that compare every image (over 300 lines: most stand on one faulty data set)."""

import hashlib
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from lfm.cli.main import app
from lfm.config.presets import load
from lfm.config.schema import DataConfig
from lfm.data import near_duplicates as hashes_module
from lfm.data.artifact import write
from lfm.data.audit import NEAR_SIDE, SHOWN_GROUPS, SHOWN_IMAGES, audit, thumbnails
from lfm.data.class_name_audit import name_problems
from lfm.data.decoding import ODD
from lfm.data.near_duplicates import close_pairs
from lfm.data.sources.base import SPLITS, Files, Source
from lfm.data.table import COLUMNS, Table, describe
from lfm.errors import InputError
from lfm.jobs import data_report
from lfm.jobs.data_report import problems_of
from lfm.report.data_page import agreeing, data_page, data_summary, headline
from tests.deep import tiff
from tests.reader import Reader

CLASSES = ("red <b>fox</b>", "n01440764", "Red <B>foxes</B>", "grey & wolf")
NO_SUBSET = DataConfig(name="custom", profile="as-is")
Row = tuple[str, int, str]  # split, label, file name


# --- a data set with every fault ---


def photo(seed: int, size: tuple[int, int] = (90, 80)) -> Image.Image:
    """Coarse random patches: its difference hash is far from that of any other seed."""
    patches = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize(size, Image.Resampling.NEAREST)


def write_odd(folder: Path) -> dict[str, str]:
    """One file of each odd kind: kind -> name."""
    deep = np.random.default_rng(1).integers(0, 65536, (30, 40)).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(101).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(deep).save(folder / "deep.png")
    photo(102).save(folder / "moves.gif", save_all=True, append_images=[photo(103)])
    photo(104).save(folder / "turned.jpg", exif=exif)
    photo(105).convert("RGBA").save(folder / "clear.png")
    photo(106, (8, 30)).save(folder / "narrow.png")
    colours = np.random.default_rng(2).integers(0, 65536, (60, 50, 3)).astype("<u2")
    (folder / "deep.tif").write_bytes(tiff(colours))
    (folder / "holes.tif").write_bytes(tiff(np.where(deep > 60_000, np.nan, deep / 65535).astype("<f4")))
    names = ("cmyk.jpg", "deep.png", "holes.tif", "deep.tif", "moves.gif", "turned.jpg", "clear.png", "narrow.png")
    return dict(
        zip(("cmyk", "deep", "no-number", "deep-tiff", "animated", "rotated", "alpha", "tiny"), names, strict=True)
    )


def write_bad(folder: Path) -> list[str]:
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "words.png").write_text("not an image")
    whole = (folder / "p0.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    return ["empty.jpg", "words.png", "half.jpg", "missing.jpg"]


def fill(folder: Path) -> list[Row]:
    """Write all files; which split and label each has."""
    rows: list[Row] = []
    for k in range(16):
        photo(k).save(folder / f"p{k}.jpg", quality=95)
        rows.append((SPLITS[(0, 0, 2, 1)[k // 4]], k % 4, f"p{k}.jpg"))

    def copy(of: str, name: str, split: str, label: int) -> None:
        shutil.copy(folder / of, folder / name)
        rows.append((split, label, name))

    copy("p0.jpg", "leak.jpg", "test", 0)
    copy("p0.jpg", "leak-and-mislabelled.jpg", "val", 1)
    copy("p1.jpg", "mislabelled.jpg", "train", 3)
    copy("p2.jpg", "twice.jpg", "train", 2)
    for k, split, label in ((3, "train", 3), (4, "test", 0), (5, "train", 2), (0, "train", 0)):
        photo(k).save(folder / f"like-p{k}.jpg", quality=30)
        rows.append((split, label, f"like-p{k}.jpg"))
    for k, grey in enumerate((0, 90, 255)):
        Image.new("L", (20, 20), grey).save(folder / f"flat{k}.png")
        rows.append(("train", k, f"flat{k}.png"))
    rows += [("train", 1, name) for name in write_odd(folder).values()]
    return rows + [("test", 2, name) for name in write_bad(folder)]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row], Path]:
    """The artifact, what was put in, and the folder of files."""
    base = tmp_path_factory.mktemp("faulty")
    files, artifact = base / "files", base / "artifact"
    for folder in (files, artifact):
        folder.mkdir()
    rows = fill(files)
    source = Source(
        Files([str(files / name) for _, _, name in rows]),
        np.array([label for _, label, _ in rows]),
        np.array([SPLITS.index(split) for split, _, _ in rows], np.int8),
        CLASSES,
        "made here",
    )
    write(artifact, source, NO_SUBSET, 0, base / "work")
    return artifact, rows, files


def readable(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row[2] not in ("empty.jpg", "words.png", "half.jpg", "missing.jpg")]


def connected(nodes: Iterable[Any], pairs: Iterable[tuple[Any, Any]]) -> list[frozenset[Any]]:
    """Connected parts of two nodes or more, by a walk."""
    near: dict[Any, set[Any]] = {node: set() for node in nodes}
    for a, b in pairs:
        near[a].add(b)
        near[b].add(a)
    seen: set[Any] = set()
    parts = []
    for node in near:
        part, todo = set(), [node]
        while todo:
            if (at := todo.pop()) not in seen:
                seen.add(at)
                part.add(at)
                todo += near[at]
        if len(part) > 1:
            parts.append(frozenset(part))
    return parts


def shown_groups(found: dict[str, Any]) -> set[frozenset[Row]]:
    return {
        frozenset((image["split"], CLASSES.index(image["class"]), image["name"]) for image in group["images"])
        for group in found["shown"]
    }


def check_totals(found: dict[str, Any], groups: list[frozenset[Row]]) -> None:
    splits, labels = ([len({row[k] for row in group}) > 1 for group in groups] for k in (0, 1))
    assert shown_groups(found) == set(groups)
    assert found["groups"] == len(groups) and found["images"] == sum(map(len, groups))
    assert found["across_splits"] == sum(splits) and found["across_labels"] == sum(labels)
    assert found["across"] == sum(a or b for a, b in zip(splits, labels, strict=True))
    for group in found["shown"]:
        assert group["across_splits"] == (len({image["split"] for image in group["images"]}) > 1)
        assert group["across_labels"] == (len({image["class"] for image in group["images"]}) > 1)
        assert group["size"] == len(group["images"])
    worst = [group["across_splits"] + group["across_labels"] for group in found["shown"]]
    assert worst == sorted(worst, reverse=True)


def test_counts_sizes_and_modes_are_those_of_the_files(faulty: tuple[Path, list[Row], Path]) -> None:
    artifact, rows, files = faulty
    found, good = audit(artifact), readable(rows)
    assert json.loads(json.dumps(found)) == found
    assert found["images"] == len(good)
    for split in SPLITS:
        labels = [label for s, label, _ in good if s == split]
        assert found["counts"][split] == [labels.count(k) for k in range(4)]
        assert found["splits"][split] == {"images": len(labels), "classes": len(set(labels))}
    images = [Image.open(files / name) for _, _, name in good]
    for side in ("width", "height"):
        values = [getattr(image, side) for image in images]
        assert found["sizes"][side] == {"min": min(values), "median": np.median(values), "max": max(values)}
    assert found["sizes"]["distinct"] == len({image.size for image in images})
    assert found["modes"] == dict(Counter(image.mode for image in images))


def test_equal_files_are_found_across_splits_and_labels(faulty: tuple[Path, list[Row], Path]) -> None:
    artifact, rows, files = faulty
    by_bytes: dict[str, list[Row]] = {}
    for row in readable(rows):
        by_bytes.setdefault(hashlib.sha256((files / row[2]).read_bytes()).hexdigest(), []).append(row)
    groups = [frozenset(group) for group in by_bytes.values() if len(group) > 1]
    found = audit(artifact)["exact"]
    check_totals(found, groups)
    assert (found["groups"], found["across_splits"], found["across_labels"]) == (3, 1, 2)
    assert found["in_train"] == {"test": 1, "val": 1}


def test_files_that_look_alike_are_found_and_flat_ones_are_not(faulty: tuple[Path, list[Row], Path]) -> None:
    artifact, _, files = faulty
    hashes: dict[Row, int] = {}
    for split in SPLITS:
        table = Table(artifact / split)
        large = np.minimum(table.column("width"), table.column("height")) >= NEAR_SIDE
        columns = zip(table.column("label").tolist(), np.where(large, table.column("dhash"), 0).tolist(), strict=True)
        hashes |= {(split, label, table.name(i)): value for i, (label, value) in enumerate(columns)}
    content = {row: (files / row[2]).read_bytes() for row in hashes}
    close = [
        (a, b)
        for a, b in itertools.combinations([row for row, value in hashes.items() if value], 2)
        if (hashes[a] ^ hashes[b]).bit_count() <= 3
    ]
    parts = [part for part in connected(hashes, close) if len({content[row] for row in part}) > 1]
    found = audit(artifact)["near"]
    check_totals(found, parts)
    assert found["flat"] == sum(value == 0 for value in hashes.values()) >= 3
    assert found["pairs"] == len({frozenset((content[a], content[b])) for a, b in close if content[a] != content[b]})
    assert found["not_compared"] == 0
    names = [{row[2] for row in part} for part in parts]
    assert {"p4.jpg", "like-p4.jpg"} in names
    assert {"p0.jpg", "like-p0.jpg", "leak.jpg", "leak-and-mislabelled.jpg"} in names


def test_every_odd_kind_and_every_bad_image_is_told(faulty: tuple[Path, list[Row], Path], tmp_path: Path) -> None:
    artifact, rows, _ = faulty
    found, kinds = audit(artifact), write_odd(tmp_path)
    assert kinds.keys() == ODD.keys() == found["odd"].keys()
    for kind, name in kinds.items():
        names = ["deep.png", "holes.tif"] if kind == "deep" else [name]
        assert [image["name"] for image in found["odd"][kind]["first"]] == names
        assert found["odd"][kind]["images"] == len(names) and found["odd"][kind]["meaning"] == ODD[kind]
    assert found["bad"]["images"] == len(rows) - len(readable(rows)) == 4
    for name in ("empty.jpg has zero bytes", "words.png is no image", "half.jpg is truncated", "missing.jpg cannot"):
        assert any(name in line for line in found["bad"]["first"])


def test_thumbnails_are_small_pictures_of_the_shown(faulty: tuple[Path, list[Row], Path]) -> None:
    found = audit(faulty[0])
    pictures = thumbnails(faulty[0], found)
    shown = {
        f"{i['split']}/{i['row']}" for kind in ("exact", "near") for g in found[kind]["shown"] for i in g["images"]
    }
    assert pictures and pictures.keys() <= shown
    assert all(uri.startswith("data:image/jpeg;base64,") and len(uri) < 4000 for uri in pictures.values())
    assert len(thumbnails(faulty[0], found, most=2)) == 2


# --- pairs of hashes ---


def brute(hashes: NDArray[np.uint64]) -> set[frozenset[int]]:
    pairs = itertools.combinations(map(int, hashes), 2)
    return {frozenset((a, b)) for a, b in pairs if (a ^ b).bit_count() <= 3}


def found_pairs(hashes: NDArray[np.uint64]) -> tuple[set[frozenset[int]], set[int]]:
    pair_P2, skipped = close_pairs(hashes)
    as_sets = [frozenset(map(int, hashes[pair])) for pair in pair_P2]
    assert len(as_sets) == len(set(as_sets)), "a pair is found once"
    return set(as_sets), set(map(int, hashes[skipped]))


flips = st.lists(st.integers(0, 63), max_size=5)
some_hashes = st.lists(st.tuples(st.integers(0, 2**64 - 1), st.lists(flips, max_size=8)), max_size=6).map(
    lambda seeds: [base ^ sum({1 << bit for bit in flip}) for base, all_ in seeds for flip in [[], *all_]]
)


@settings(deadline=None, max_examples=150)
@given(values=some_hashes, bucket=st.sampled_from([1, 2, 64]), last=st.sampled_from([1, 2, 1024]))
@example(values=[], bucket=64, last=1024)
@example(values=[2**64 - 1, 2**64 - 2, 0, 1], bucket=1, last=1)
def test_close_pairs_are_those_of_comparing_all(values: list[int], bucket: int, last: int) -> None:
    hashes = np.unique(np.array(values, np.uint64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashes_module, "BUCKET", bucket)
        patch.setattr(hashes_module, "LAST", last)
        found, skipped = found_pairs(hashes)
    expected = brute(hashes)
    assert found <= expected
    assert all(pair <= skipped for pair in expected - found), "what was missed is said"
    if last == 1024:
        assert found == expected and not skipped


@pytest.mark.slow
@pytest.mark.parametrize("spread", [1, 5])
def test_close_pairs_of_hashes_that_crowd_together(spread: int) -> None:
    hashes = np.arange(1500, dtype=np.uint64) << np.uint64(spread * 7)
    assert found_pairs(hashes) == (brute(hashes), set())


@pytest.mark.slow
def test_a_crowd_that_would_fill_the_memory_is_cut_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = np.arange(1, 2000, dtype=np.uint64)
    monkeypatch.setattr(hashes_module, "MOST_PAIRS", 10)
    found, skipped = found_pairs(hashes)
    expected = brute(hashes)
    assert found < expected and all(pair <= skipped for pair in expected - found)


def write_columns(folder: Path, split: str, dhash: NDArray[np.uint64], sha: list[str]) -> None:
    """Arrow files as `write_table` makes them, without images."""
    n = len(dhash)
    (folder / split).mkdir(parents=True)
    columns = {
        "image": pa.array([{"bytes": b"", "path": f"{k}.jpg"} for k in range(n)], COLUMNS["image"]),
        "label": pa.array(np.arange(n) % 4),
        "mode": pa.array(["RGB"] * n),
        "sha256": pa.array(sha, pa.string()),
        "dhash": pa.array(dhash, pa.uint64()),
        "odd": pa.array([""] * n, pa.string()),
        "deep": pa.array([""] * n, pa.string()),
    } | {side: pa.array(np.full(n, 90, np.int32)) for side in ("width", "height")}
    batch = pa.record_batch([columns[name] for name in COLUMNS], schema=pa.schema(COLUMNS))
    with pa.OSFile(str(folder / split / "0.arrow"), "wb") as file, pa.ipc.new_stream(file, batch.schema) as writer:
        for start in range(0, n, 1024):
            writer.write_batch(batch.slice(start, 1024))
    describe(folder / split, split, ["0.arrow"], CLASSES)


def test_two_hundred_thousand_images(tmp_path: Path) -> None:
    n = 200_000
    rng = np.random.default_rng(0)
    hashes = rng.integers(1, 2**64, n, dtype=np.uint64)
    hashes[1000:2000] = hashes[:1000] ^ np.uint64(0b1001)  # 1,000 pairs
    hashes[2000:3000] = hashes[2000]  # one large group
    hashes[3000:3050] = 0
    sha = [f"{k:064x}" for k in range(n)]
    write_columns(tmp_path, "train", hashes, sha)
    write_columns(tmp_path, "val", hashes[:0], [])
    write_columns(tmp_path, "test", hashes[150_000:150_010], sha[150_000:150_010])
    (tmp_path / "info.json").write_text(json.dumps({"classes": CLASSES, "depth": {}}))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/bad.json").write_text("[]")
    found = audit(tmp_path)
    assert (found["exact"]["groups"], found["exact"]["in_train"]) == (10, {"val": 0, "test": 10})
    near = found["near"]
    assert (near["groups"], near["images"], near["flat"]) == (1001, 3000, 50)
    assert near["pairs"] == 1000 + 1000 * 999 // 2 and near["not_compared"] == 0
    assert len(near["shown"]) == SHOWN_GROUPS
    largest = max(near["shown"], key=lambda group: group["size"])
    assert largest["size"] == 1000 and len(largest["images"]) == SHOWN_IMAGES
    assert len({image["class"] for image in largest["images"]}) == 4


# --- names ---


@pytest.mark.parametrize(
    ("names", "kind", "expected"),
    [
        (["T-shirt", "t shirts", "cap"], "alike", [["T-shirt", "t shirts"]]),
        (["horse", "Horses", "house"], "alike", [["horse", "Horses"]]),
        (["berry", "berries", "box", "boxes"], "alike", [["berry", "berries"], ["box", "boxes"]]),
        (["movie", "movies", "glass", "glasses"], "alike", [["movie", "movies"], ["glass", "glasses"]]),
        (["bus", "bu", "iris", "iri", "pin", "pine"], "alike", []),
        (["12", "n01440764", " 7 ", "n0144", "route 66"], "unreadable", ["12", "n01440764", " 7 ", "n0144"]),
        (["a_b", "a b"], "underscores", ["a_b"]),
        ([" fox", "fox ", "red fox"], "spaces", [" fox", "fox "]),
        (["x" * 60, "y" * 61], "long", ["y" * 61]),
        (["??", "!!", "-"], "alike", []),
    ],
)
def test_name_problems(names: list[str], kind: str, expected: list[Any]) -> None:
    problem = name_problems(names)[kind]
    assert problem["first"] == expected
    assert problem["classes"] == sum(len(group) if isinstance(group, list) else 1 for group in expected)


# --- the page ---


class Page(Reader):
    """The report's page as a browser would see it, with its pictures."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("br", "img"):
            self.tags.append((tag, dict(attrs)))
        else:
            super().handle_starttag(tag, attrs)


def inspected(classes: list[str], counts: list[int]) -> dict[str, Any]:
    """What `lfm.jobs.inspect` gives, with numbers that are all different."""
    size = len(classes)
    return {
        "classes": classes,
        "counts": counts,
        "gamma": max(counts) / min(counts),
        "gamma_effective": 3.25,
        "own_label_mass": [0.4 + 0.5 * k / size for k in range(size)],
        "label_mass": [0.1 + k / size / 7 for k in range(size)],
        "neighbours": [
            [{"class": classes[(k + n) % size], "cosine": 1 / (n + k + 1)} for n in (1, 2, 3)] for k in range(size)
        ],
        "prior": [n / sum(counts) for n in counts],
        "seen": [0.2 + k / size / 3 for k in range(size)],
        "alpha": 0.75,
        "alike": {"pairs": 0, "first": []},
        "collapsing": [],
    }


def report_of(found: dict[str, Any], method: dict[str, Any] | None) -> dict[str, Any]:
    data = {"preset": "custom", "name": "custom", "source": "<here>", "seed": 3, "artifact": "abc", "tau": 0.05}
    data |= {"threshold": 0.5, "shots": "many > 100, few < 20", "shot_group": ["few"] * len(found["classes"])}
    no_text = "" if method else "no <network>"
    return {
        "data": data,
        "source": ["3 files of <here> are left out"],
        "inspect": method,
        "no_text": no_text,
        "audit": found,
        "problems": problems_of(found, method, 0.5),
    }


def check_offline(reader: Page, content: str) -> None:
    assert "url(" not in content and "@import" not in content and "<script" not in content
    for tag, attributes in reader.tags:
        assert tag not in ("script", "iframe") and not any(name.startswith("on") for name in attributes)
        assert (attributes.get("href") or "#").startswith(("#", "data:"))
        assert (attributes.get("src") or "data:").startswith("data:")


def test_what_to_correct_comes_worst_first(faulty: tuple[Path, list[Row], Path]) -> None:
    found = audit(faulty[0])
    problems = problems_of(found, inspected(list(CLASSES), found["counts"]["train"]), 0.5)
    near = found["near"]["across"]
    assert [(item["count"], item["what"].split(":")[0]) for item in problems] == [
        (4, "images that cannot be used"),
        (1, "test images that are training images too"),
        (1, "val images that are training images too"),
        (2, "groups of equal images under several labels"),
        (1, "deep images with levels that are no numbers (NaN, infinity)"),
        (1, "class names"),
        (2, "class names"),
        (1, "classes about to collapse"),
        (near, "groups of images that look alike across splits or labels"),
    ]
    leak = problems[1]["examples"][0]
    assert "train red <b>fox</b>/p0.jpg" in leak and "test red <b>fox</b>/leak.jpg" in leak
    assert problems[5]["examples"] == ["'n01440764'"] and problems[6]["examples"] == [
        "red <b>fox</b> / Red <B>foxes</B>"
    ]


@pytest.mark.parametrize("text", [True, False])
def test_the_page_shows_the_numbers_of_the_report(faulty: tuple[Path, list[Row], Path], text: bool) -> None:
    found = audit(faulty[0])
    method = inspected(list(CLASSES), found["counts"]["train"]) if text else None
    report = report_of(found, method)
    content = data_page("Data <report>", report, pictures := thumbnails(faulty[0], found))
    reader = Page(content)
    check_offline(reader, content)
    assert {tag for tag, _ in reader.tags}.isdisjoint({"b", "here", "network", "report"})
    assert [a["src"] for tag, a in reader.tags if tag == "img"].count(next(iter(pictures.values()))) >= 1
    assert {a["src"] for tag, a in reader.tags if tag == "img"} == set(pictures.values())
    classes, sizes, deep, odd = reader.tables
    assert deep[1:] == [
        ["u16", "1", "0", "65535", "16 bits hold every level"], ["f32", "1", "0", "1", "floats of 0 to 1"]
    ]  # fmt: skip
    counts = found["counts"]["train"]
    order = sorted(range(4), key=lambda k: -counts[k])
    for row, k in zip(classes[1:], order, strict=True):
        expected = [CLASSES[k], "few", str(counts[k]), "", *(str(found["counts"][s][k]) for s in ("val", "test"))]
        expected.append(f"{counts[k] / sum(counts):.4f}")
        if method:
            expected += [f"{method['seen'][k]:.4f}", f"{method['own_label_mass'][k]:.2f}"]
            expected.append(f"{method['label_mass'][k]:.4f}")
            expected.append(", ".join(f"{n['class']} {n['cosine']:.2f}" for n in method["neighbours"][k]))
        assert row == expected
    assert sizes[1:] == [
        [side, *(f"{found['sizes'][side][k]:g}" for k in ("min", "median", "max"))] for side in ("width", "height")
    ]
    assert odd[1:] == [
        [k, str(of["images"]), ODD[k], ", ".join(image["name"] for image in of["first"])]
        for k, of in found["odd"].items()
    ]
    told = list(zip(reader.texts["dt"], reader.texts["dd"], strict=False))
    assert told and "".join(headline(report).values()) == reader.texts["dd"]
    assert ("no <network>" in reader.texts["p"]) is not text
    assert f"{found['near']['pairs']:,} pairs" in reader.texts["p"]
    for item in report["problems"]:
        assert f"{item['count']:,} {agreeing(item)['what']}." in reader.texts["strong"]
    for line in (*found["bad"]["first"], *report["source"]):
        assert line in reader.texts["li"]


def test_nothing_to_correct_is_said_and_a_thousand_classes_fit() -> None:
    names = [f"class {k} " + "<&>" * 10 for k in range(1000)]
    none: dict[str, Any] = {"groups": 0, "images": 0, "across_splits": 0, "across_labels": 0, "across": 0, "shown": []}
    counts = {"train": list(range(1, 1001)), "val": [0] * 1000, "test": [1] * 1000}
    found = {
        "images": 2000,
        "splits": {split: {"images": sum(n), "classes": 1000} for split, n in counts.items()},
        "classes": names,
        "counts": counts,
        "sizes": {side: {"min": 1, "median": 2.0, "max": 3} for side in ("width", "height")} | {"distinct": 1},
        "modes": {"L": 2000},
        "depth": {"rule": {}, "results": {}},
        "exact": none | {"in_train": {"val": 0, "test": 0}},
        "near": none | {"distance": 3, "flat": 0, "pairs": 0, "not_compared": 7},
        "odd": {"no-number": {"images": 0, "first": []}},
        "bad": {"images": 0, "first": []},
        "names": name_problems(["fox", "owl"]),
        "cleaned": {},
    }
    method = inspected(names, counts["train"]) | {"own_label_mass": [0.9] * 1000}
    report = report_of(found, method)
    content = data_page("many", report)
    assert len(content) < 2_000_000 and report["problems"] == []
    reader = Page(content)
    assert len(reader.tables[0]) == 1001 and reader.tables[0][1][0] == names[-1]
    assert "No problems were found" in reader.texts["p"] and "7 images were not compared further" in reader.texts["p"]
    assert "No problems were found" in data_summary(report)


# --- the job and the command ---


def test_without_a_text_tower_everything_else_is_reported(
    faulty: tuple[Path, list[Row], Path], home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, rows, files = faulty
    manifest = tmp_path / "all.csv"
    lines = [f"{files / name},{CLASSES[label]},{split}" for split, label, name in rows if name != "missing.jpg"]
    manifest.write_text("\n".join(["path,label,split", *lines]))

    def unreachable(*_: Any) -> Any:
        raise InputError("cannot fetch the weights: no network")

    monkeypatch.setattr("lfm.jobs.data_report.backbone_for", unreachable)
    found, page = data_report.report_data(load("custom", {"data.source": str(manifest)}))
    assert found["inspect"] is None and found["no_text"] == "cannot fetch the weights: no network"
    assert found["no_text"] in Page(page).texts["p"] and found["no_text"] in data_summary(found)
    assert found["audit"]["bad"]["images"] == 3 and found["audit"]["exact"]["groups"] == 3
    assert json.loads(json.dumps(found)) == found


@pytest.mark.slow
def test_the_command_writes_page_and_json_and_says_what_to_correct(small_fashion: Path, home: Path) -> None:
    values = {
        "data.verify": "false", "data.source": str(small_fashion), "data.max_per_class": "40",
        "data.imbalance": "10", "data.val_per_class": "5",
    }  # fmt: skip
    command = ["data", "report", "fashion-mnist-lt", *(f"--set={name}={value}" for name, value in values.items())]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0
    page, written = home / "data-fashion-mnist-lt.html", home / "data-fashion-mnist-lt.json"
    found = json.loads(written.read_text())
    content = page.read_text()
    check_offline(Page(content), content)
    assert found["audit"]["splits"]["test"]["images"] == 100 and found["audit"]["splits"]["val"]["images"] == 50
    assert found["inspect"]["counts"] == found["audit"]["counts"]["train"]
    assert found["data"]["shot_group"][0] == "medium" and found["data"]["shot_group"][-1] == "few"
    assert done.output.rstrip().endswith(f"Page: {page}\nJSON: {written}") and data_summary(found) in done.output


def test_page_and_json_need_two_files(home: Path) -> None:
    result = CliRunner().invoke(app, ["data", "report", "fashion-mnist-lt", "--out", "both.json"])
    assert isinstance(result.exception, InputError) and "both.json" in str(result.exception)
