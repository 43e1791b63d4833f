"""Image folders: ROOT/CLASS/*.jpg or ROOT/SPLIT/CLASS/*.jpg (over 300 lines: one layout, and what is doubtful)."""

import os
import posixpath
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from lfm.data.sources.base import TRAIN, stamp_of
from lfm.data.sources.image_listing import Found, first_few
from lfm.data.sources.manifest import unreadable
from lfm.data.sources.split_words import say_splits, splits_of
from lfm.errors import InputError, counted
from lfm.progress import say
from lfm.storage import s3

IMAGES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".jpx",
))  # fmt: skip
NOT_OURS = frozenset((
    "@eadir", "#recycle", "@recycle", "$recycle.bin", "__macosx", "lost+found", "system volume information",
    "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__pycache__",
))  # fmt: skip
"""Folders and files that systems put next to images, in small letters; as are all whose names begin with a dot."""

METADATA = ("metadata.csv", "metadata.jsonl")
SHOWN = 8
DEEPEST = 4
"""Levels of folders that may be splits, groups and classes."""


@dataclass
class LeftOut:
    """What a folder holds besides images."""

    endings: Counter[str] = field(default_factory=Counter)
    """Ending -> files that are no images by it."""
    metadata: list[str] = field(default_factory=list)
    """Files metadata.csv, metadata.jsonl, from the root."""
    not_ours: Counter[str] = field(default_factory=Counter)
    """Name -> hidden files and folders, thumbnails and what else systems put there; their content is not counted."""

    def tell(self, root: str) -> None:
        """A line for each kind that there is."""
        for file in self.metadata:
            say(
                f"warning: {root}/{file} is not used, since the folders name the classes; "
                f"data.source={root}/{file} takes its labels"
            )
        if self.not_ours:
            one = f"hidden, thumbnail or system entry of {root} is"
            number = counted(self.not_ours.total(), one, f"hidden, thumbnail and system entries of {root} are")
            say(f"{number} left out ({_listed(self.not_ours)})")
        if self.endings:
            one = f"file of {root} is no image by its ending and is"
            number = counted(self.endings.total(), one, f"files of {root} are not images by their ending and are")
            say(f"{number} left out ({_listed(self.endings)})")


def _listed(names: Counter[str]) -> str:
    few = names.most_common(SHOWN)
    return ", ".join(f"{name or 'no ending'}: {count:,}" for name, count in few) + (
        ", ..." if len(names) > SHOWN else ""
    )


@dataclass
class Scan:
    """What is below a folder."""

    root: str
    files: list[tuple[str, str]] = field(default_factory=list)
    """Images: path from the root, stamp; sorted."""
    folders: set[str] = field(default_factory=set)
    left: LeftOut = field(default_factory=LeftOut)

    def labelled_by_metadata(self) -> bool:
        """Whether no class folders, but metadata files (imagefolder's convention) can name the classes."""
        where = {name.rpartition("/")[0] for name, _ in self.files}
        inside: dict[str, set[str]] = {}
        for folder in where:
            home = max((each for each in self._homes() if f"{folder}/".startswith(each)), default=None, key=len)
            if home is None:
                return False
            inside.setdefault(home, set()).add(folder)
        return bool(inside) and all(len(folders) == 1 for folders in inside.values())

    def _homes(self) -> list[str]:
        return [name.rpartition("metadata.")[0] for name in self.left.metadata]

    def metadata(self) -> list[tuple[str, str]]:
        """Each metadata file, and the folder that its paths start from, from the root, with a slash at its end."""
        return list(zip(self.left.metadata, self._homes(), strict=True))


def check_any(root: Path) -> None:
    """Check that something in a local folder could be images; the first one ends the search.

    Raises:
        InputError: nothing does, or a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise unreadable(str(error.filename), error) from error

    for _, _, files in os.walk(root, onerror=refuse, followlinks=True):
        if any(_ending(name) in IMAGES or _ending(name) in (".parquet", ".arrow") for name in files):
            return
    raise InputError(f"{root} has no images in class folders; lay them out as {root}/CLASS/*.jpg")


def scan(root: str) -> Scan:
    """All images below a folder or prefix.

    Raises:
        InputError: not readable.
    """
    found = Scan(root)
    if s3.is_remote(root):
        _list_bucket(root, found.files, found.folders, found.left)
    else:
        try:
            _scan(root, "", (_identity(Path(root).stat()),), found.files, found.folders, found.left)
        except OSError as error:
            raise unreadable(error.filename or root, error) from error
    found.files.sort()
    found.left.metadata.sort()
    return found


def from_folder(found: Scan, class_depth: int = 0) -> Found:
    """The images in the class folders of a folder; the class folder's name is the label.

    Args:
        found: of `scan`.
        class_depth: as `data.class_depth`: the level of the class folders, 1 or more; 0: by the layout.

    Raises:
        InputError: no images in class folders, a class without images, or doubt about the layout.
    """
    root, files, folders = found.root, found.files, found.folders
    depth, split_of = _layout(root, folders, files, class_depth)
    name, stamp, label, split = [], [], [], []
    for each, mark in files:
        parts = each.split("/", depth + 1)
        if len(parts) == depth + 2:
            name.append(each)
            stamp.append(mark)
            label.append(parts[depth])
            split.append(split_of.get(parts[0], TRAIN))
    if not name:
        lie = counted(len(files), "image lies", "images lie")
        flat = f"; {lie} in it without a class folder" if files else ""
        raise InputError(f"{root} has no images in class folders{flat}; lay them out as {root}/CLASS/*.jpg")
    wanted = {folder.split("/")[depth] for folder in folders if folder.count("/") >= depth}
    if missing := sorted(wanted - set(label)):
        hold = counted(len(missing), f"folder of {root} holds", f"folders of {root} hold")
        raise InputError(
            f"{hold} no image ({first_few(missing)}), and each folder is a class; "
            f"add images ({' '.join(sorted(IMAGES))}) or move the folder elsewhere"
        )
    found.left.tell(root)
    if len(name) < len(files):
        outside = len(files) - len(name)
        lie = counted(outside, f"image of {root} lies", f"images of {root} lie")
        say(f"{lie} outside of class folders and {'is' if outside == 1 else 'are'} left out")
    path = [f"{root}/{each}" for each in name]
    return Found(path, name, stamp, label, split, path.__getitem__, spaces=True)


def _layout(
    root: str, folders: set[str], files: list[tuple[str, str]], class_depth: int
) -> tuple[int, Mapping[str, int]]:
    """Folders above the class folders, and the split of each top folder if these are splits.

    Raises:
        InputError: doubt.
    """
    top = {folder for folder in folders if "/" not in folder}
    found = splits_of(top)
    split_of = {name: split for name, split in found.items() if split is not None}
    if class_depth:
        return class_depth - 1, split_of if class_depth > 1 and split_of.keys() == top else {}
    direct = {name.rpartition("/")[0] for name, _ in files}
    if top and split_of.keys() == top:
        say_splits(root, found)
        _ask_depth(root, direct, 1)
        return 1, split_of
    if len(split_of) > 1 and TRAIN in split_of.values():  # a class may be called train; hardly two of the names
        raise InputError(
            f"{root} has split folders ({first_few(set(split_of))}) and others ({first_few(top - split_of.keys())}); "
            f"keep only train, val (or validation) and test there, or only class folders"
        )
    holders = {folder for folder in top if folder not in direct and any(f.startswith(f"{folder}/") for f in folders)}
    splits = holders & split_of.keys()
    if splits and holders != splits:
        raise InputError(
            f"{root} has the split folder {first_few(splits)} and {first_few(holders - splits)}, which is none; "
            f"name all of them train, val or test"
        )
    if len(top) == 1 and holders:
        (only,) = top
        raise InputError(f"{root} holds one folder, {only}, with folders in it; set data.source={root}/{only}")
    _ask_depth(root, direct, 0)
    return 0, {}


def _ask_depth(root: str, direct: set[str], depth: int) -> None:
    """Refuse folders at the place of classes that hold no image of their own but folders that could be the classes.

    Folders that all hold one folder of the same name (CLASS/images/*.jpg) are classes.

    Args:
        root: what an error calls the source.
        direct: all folders that have an image in them, from the root.
        depth: folders above what would be the class folders.

    Raises:
        InputError: folds or splits of a name that is not known, or classes one level down.
    """
    inside: dict[str, set[str]] = {}
    for folder in direct:
        parts = folder.split("/")
        if len(parts) > depth + 1:
            inside.setdefault("/".join(parts[: depth + 1]), set()).add(parts[depth + 1])
    own = {folder for folder in direct if folder.count("/") == depth}
    holders = {folder: names for folder, names in inside.items() if folder not in own}
    count = Counter(chain.from_iterable(holders.values()))
    shared = {name for name, number in count.items() if number > 1}
    if len(count) < 2 or (own and not shared):
        return
    here = first_few({folder.split("/")[depth] for folder in holders})
    if shared and not depth:
        raise InputError(
            f"the folders {here} of {root} hold folders of the same names ({first_few(shared)}), so they look like "
            f"splits or folds and not like classes; name them train, val and test; or set data.class_depth=2 to put "
            f"them together, or data.class_depth=1 if they are the classes"
        )
    raise InputError(
        f"the folders {here} of {root} hold no images, only folders of images ({first_few(set(count))}); set "
        f"data.class_depth={depth + 2} if those are the classes, or data.class_depth={depth + 1} if {here} are"
    )


def _scan(
    folder: str,
    inner: str,
    above: tuple[tuple[int, int], ...],
    files: list[tuple[str, str]],
    folders: set[str],
    left: LeftOut,
) -> None:
    """Collect the images under a folder, and what is left out. A folder inside itself (a link) is not entered."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if _not_ours(name):
                left.not_ours[name] += 1
            elif entry.is_dir():
                identity = _identity(entry.stat())
                if identity not in above:
                    if inner.count("/") < DEEPEST:
                        folders.add(inner + name)
                    _scan(entry.path, f"{inner}{name}/", (*above, identity), files, folders, left)
            elif _ending(name) in IMAGES:
                try:
                    files.append((inner + name, stamp_of(entry.stat())))
                except FileNotFoundError:  # a link to nothing: reading it will say so, with its name
                    files.append((inner + name, "gone"))
            elif name.lower() in METADATA:
                left.metadata.append(inner + name)
            else:
                left.endings[_ending(name)] += 1


def _list_bucket(root: str, files: list[tuple[str, str]], folders: set[str], left: LeftOut) -> None:
    not_ours: set[str] = set()
    for item in s3.listing(root):
        name = item.uri[len(root) + 1 :]
        parts = name.split("/")
        if foreign := next((k for k, part in enumerate(parts) if part and _not_ours(part)), -1) + 1:
            not_ours.add("/".join(parts[:foreign]))
            continue
        folders.update("/".join(parts[: k + 1]) for k in range(min(len(parts) - 1, DEEPEST)))
        if _ending(parts[-1]) in IMAGES:
            files.append((name, f"{item.size} {item.etag}"))
        elif parts[-1].lower() in METADATA:
            left.metadata.append(name)
        else:
            left.endings[_ending(parts[-1])] += 1
    left.not_ours.update(path.rpartition("/")[2] for path in not_ours)


def _not_ours(name: str) -> bool:
    return name.startswith(".") or name.lower() in NOT_OURS


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _ending(name: str) -> str:
    return posixpath.splitext(name)[1].lower()
