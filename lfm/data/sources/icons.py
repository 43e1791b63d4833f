"""Icons of free desktops as pictures with names: where their packages come from, and which pictures become data.

A class is a name that desktops agree on ("edit-copy"), drawn by some twenty families of artists. Whole families are
held out for the test, and one for validation: what was learnt from some hands is asked of others.

Letters in the names give shapes: N pictures.
"""

import hashlib
import http.client
import io
import json
import re
import subprocess
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from lfm.config.schema import DataConfig
from lfm.data.sources import debian
from lfm.data.sources.base import TEST, TRAIN, VAL, Arrays, Source
from lfm.data.sources.downloads import downloads, where_to_put
from lfm.errors import InputError, counted
from lfm.progress import bar, say
from lfm.storage.artifact import sha256_file

PACKAGES = Path(__file__).with_suffix(".json")
"""Package -> sha256 of its file in Debian 12: the ones that `data.verify` accepts."""
TEST_FAMILIES = ("breeze", "oxygen", "bloom", "yaru", "paper", "suru", "nuovext2", "sugar")
HELD_OUT = {**dict.fromkeys(TEST_FAMILIES, TEST), "elementary": VAL}
"""Family -> its split; all others are for training."""
SIDE = 32
FAMILIES, LEAST = {TRAIN: 5, TEST: 3}, {TRAIN: 6, TEST: 4}
"""Families that draw a name, and pictures of it that are left, which make it a class."""
NEAR = 6.0
"""Pictures of a class whose grey levels differ by less than this on average are one drawing."""
SECONDS = 600.0
MEMBER = re.compile(r"\./usr/share/icons/(?P<theme>[^/]+)/(?P<place>.+)/(?P<name>[a-z][a-z0-9-]*)\.(?P<kind>png|svg)$")
LEFT_OUT = re.compile(r"symbolic|dark|animations|emotes|emblems|intl|lang|panel|/web|@\dx", re.IGNORECASE)
SIZE = re.compile(r"(?:^|/)(\d+)(?:x\d+)?(?:/|$)")
KEPT, ABOUT = "icons.npy", "icons.json"


class Drawing(NamedTuple):
    """A file of a theme, not read as a picture yet."""

    theme: str
    name: str
    data: bytes
    kind: str

    @property
    def family(self) -> str:
        """The theme's name up to the first hyphen."""
        return self.theme.partition("-")[0].lower()

    @property
    def split(self) -> int:
        """By its family."""
        return HELD_OUT.get(self.family, TRAIN)


def load_icons(config: DataConfig) -> Source:
    """Pictures of 32 x 32 pixels in colour on white, classes from the most to the fewest training pictures.

    Args:
        config: `source` holds icons.npy and icons.json as another machine built them; empty: the download folder,
            filled from Debian's packages if need be.

    Raises:
        InputError: no apt, other versions of the packages, no renderer, or altered files.
    """
    place = Path(config.source) if config.source else downloads("icons-lt")
    if not config.source and not (place / ABOUT).is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_suffix(".lock")):  # another process may be building the same files
            if not (place / ABOUT).is_file():
                _fetch(place, config.verify)
    return read(place)


def read(place: Path) -> Source:
    """What `build` left.

    Raises:
        InputError: files that are missing or altered.
    """
    again = f"delete {place} and run again to build it"
    try:
        about = json.loads((place / ABOUT).read_text())
        pixels = np.load(place / KEPT, allow_pickle=False)
        if sha256_file(place / KEPT) != about["sha256"]:
            raise ValueError(f"the sha256 of {KEPT} is another than {ABOUT} says")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{place} does not hold the pictures of icons-lt ({error}); {again}") from error
    names = tuple(name.replace("-", " ") for name in about["classes"])
    label_N, split_N = np.array(about["label"], np.int64), np.array(about["split"], np.int8)
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return Source(Arrays(pixels, "icons-lt"), label_N, split_N, names, digest)


def _fetch(place: Path, verify: bool) -> None:
    published = json.loads(PACKAGES.read_text())
    check_renderer()
    say(f"icons-lt: {len(published)} packages of icons from this machine's Debian mirror, 310 MB, for once")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            debs = debian.download(list(published), Path(scratch), SECONDS)
        except (OSError, subprocess.SubprocessError, http.client.HTTPException) as error:
            raise InputError(
                f"icons-lt is built from Debian's packages, which cannot be fetched ({' '.join(str(error).split())}); "
                f"{where_to_put('icons-lt')}"
            ) from error
        other = [path.name for path, sha in zip(debs, published.values(), strict=True) if sha256_file(path) != sha]
        if other and verify:
            raise InputError(
                f"{len(other)} of {len(debs)} packages are not those of Debian 12 ({', '.join(other[:3])}); results "
                "would differ: --set data.verify=false takes them all the same"
            )
        build(debs, place)


def check_renderer() -> None:
    """Refuse to begin without what draws SVG files.

    Raises:
        InputError: it is not installed.
    """
    if find_spec("resvg_py") is None:
        raise InputError("icons-lt needs a renderer of SVG files; in LFM's folder run: pip install '.[icons]'")


def build(debs: Sequence[Path], place: Path) -> None:
    """Render, choose and keep the pictures of packages.

    Args:
        debs: the packages' files.
        place: folder that gets icons.npy and icons.json.
    """
    drawings = list(candidates(debs))
    by = Counter((name, split) for name, split, _ in {(d.name, d.split, d.family) for d in drawings})
    hopeful = [d for d in drawings if all(by[d.name, split] >= least for split, least in FAMILIES.items())]
    pictures: dict[str, list[tuple[int, NDArray[np.uint8]]]] = defaultdict(list)
    with bar(len(hopeful), "icons", "pictures") as progress:
        for drawing in hopeful:
            if (pixels := render(drawing.data, drawing.kind)) is not None:
                pictures[drawing.name].append((drawing.split, pixels))
            progress.update()
    _keep(choose(pictures), {path.name: sha256_file(path) for path in debs}, place)


def candidates(debs: Iterable[Path]) -> Iterator[Drawing]:
    """Of each theme and name one drawing of a size, by the order of their paths."""
    for deb in debs:
        found: dict[tuple[str, str, int], tuple[str, Drawing]] = {}
        command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE) as unpacking,  # noqa: S603
            tarfile.open(fileobj=unpacking.stdout, mode="r|") as tree,
        ):
            for member in tree:
                match = MEMBER.match(member.name)
                if not (match and member.isfile()) or LEFT_OUT.search(member.name[len("./usr/share/icons/") :]):
                    continue
                size = SIZE.search(match["place"])
                key = match["theme"], match["name"], min(int(size[1]), 64) if size else 64
                if key in found and found[key][0] <= member.name:
                    continue
                file = tree.extractfile(member)
                assert file
                found[key] = member.name, Drawing(match["theme"], match["name"], file.read(), match["kind"])
        for key in sorted(found):
            yield found[key][1]


def render(data: bytes, kind: str) -> NDArray[np.uint8] | None:
    """A drawing of 32 x 32 pixels on white, (32, 32, 3); None where it is broken, empty or not square."""
    import resvg_py

    try:
        if kind == "svg":
            data = resvg_py.svg_to_bytes(
                svg_string=data.decode(), width=SIDE, height=SIDE, skip_system_fonts=True, background="#ffffff"
            )
        with Image.open(io.BytesIO(data)) as image:
            if image.width != image.height:
                return None
            white = Image.new("RGBA", image.size, "white")
            white.alpha_composite(image.convert("RGBA"))
    except (OSError, ValueError, SyntaxError):  # what a broken PNG, SVG or its text comes to
        return None
    pixels = np.asarray(white.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    return pixels if pixels.std() > 1 else None


def choose(
    pictures: dict[str, list[tuple[int, NDArray[np.uint8]]]],
) -> dict[str, list[tuple[int, NDArray[np.uint8]]]]:
    """The classes and their pictures, without copies, the class of most training pictures first.

    What hangs under two names tells nothing and is left out; of the drawings of a class that are nearly the same, those
    of training stay, so that no test picture was seen.
    """
    names_of: dict[bytes, set[str]] = defaultdict(set)
    for name, several in pictures.items():
        for _, pixels in several:
            names_of[pixels.tobytes()].add(name)
    found = {}
    for name, several in pictures.items():
        own = sorted((one for one in several if len(names_of[one[1].tobytes()]) == 1), key=lambda one: one[0])
        kept = _distinct(own)
        counts = Counter(split for split, _ in kept)
        if all(counts[split] >= least for split, least in LEAST.items()):
            found[name] = kept

    def rank(name: str) -> tuple[int, str]:
        return -sum(split == TRAIN for split, _ in found[name]), name

    return {name: found[name] for name in sorted(found, key=rank)}


def _distinct(several: list[tuple[int, NDArray[np.uint8]]]) -> list[tuple[int, NDArray[np.uint8]]]:
    kept: list[tuple[int, NDArray[np.uint8]]] = []
    known = np.zeros((len(several), SIDE * SIDE * 3), np.float32)
    for split, pixels in several:
        row = pixels.reshape(-1).astype(np.float32)
        if not (np.abs(known[: len(kept)] - row).mean(1) < NEAR).any():
            known[len(kept)] = row
            kept.append((split, pixels))
    return kept


def _keep(classes: dict[str, list[tuple[int, NDArray[np.uint8]]]], packages: dict[str, str], place: Path) -> None:
    if len(classes) < 2:
        raise InputError(f"the packages hold {len(classes)} names with enough pictures; take those of Debian 12")
    place.mkdir(parents=True, exist_ok=True)
    flat = [(k, split, pixels) for k, several in enumerate(classes.values()) for split, pixels in several]
    np.save(place / KEPT, np.stack([pixels for *_, pixels in flat]), allow_pickle=False)
    about = {
        "classes": list(classes),
        "label": [k for k, *_ in flat],
        "split": [split for _, split, _ in flat],
        "packages": packages,
        "sha256": sha256_file(place / KEPT),
    }
    aside = place / f"{ABOUT}.tmp"
    aside.write_text(json.dumps(about))
    aside.replace(place / ABOUT)
    counts = Counter(split for _, split, _ in flat)
    say(
        f"icons-lt: {counted(len(classes), 'class', 'classes')}, {counts[TRAIN]:,} pictures for training, "
        f"{counts[VAL]:,} for validation, {counts[TEST]:,} of other artists for the test; kept in {place}"
    )
