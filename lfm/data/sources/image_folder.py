"""Image folders, on disk or at s3://: ROOT/CLASS/*.jpg or ROOT/SPLIT/CLASS/*.jpg."""

import os
from pathlib import Path

from lfm.data.sources.base import TRAIN
from lfm.data.sources.image_listing import Found, first_few, stamp_of
from lfm.data.sources.manifest import SPLIT_NAMES, unreadable
from lfm.errors import InputError
from lfm.progress import say
from lfm.storage import s3

IMAGES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))


def from_folder(root: str) -> Found:
    """The images in the class folders of a folder; the class folder's name is the label.

    Raises:
        InputError: not readable, no images in class folders, a class without images, or doubt about the layout.
    """
    files: list[tuple[str, str]] = []  # path from the root, stamp
    folders: set[str] = set()
    if s3.is_remote(root):
        ignored = _list_bucket(root, files, folders)
    else:
        try:
            ignored = _scan(root, "", (_identity(Path(root).stat()),), files, folders)
        except OSError as error:
            raise unreadable(error.filename or root, error) from error
    files.sort()
    top = {folder for folder in folders if "/" not in folder}
    depth = _depth(root, top)
    _check_layout(root, top, folders, files, depth)
    name, stamp, label, split = [], [], [], []
    for each, mark in files:
        parts = each.split("/", depth + 1)
        if len(parts) == depth + 2:
            name.append(each)
            stamp.append(mark)
            label.append(parts[depth])
            split.append(SPLIT_NAMES[parts[0].lower()] if depth else TRAIN)
    if not name:
        flat = f"; {len(files):,} images lie in it without a class folder" if files else ""
        raise InputError(f"{root} has no images in class folders{flat}; lay them out as {root}/CLASS/*.jpg")
    wanted = {folder.split("/")[depth] for folder in folders if folder.count("/") >= depth}
    if missing := sorted(wanted - set(label)):
        raise InputError(
            f"{len(missing)} folders of {root} hold no image ({first_few(missing)}), and each folder is a class; "
            f"add images ({' '.join(sorted(IMAGES))}) or move the folder elsewhere"
        )
    if ignored:
        say(f"{ignored:,} files of {root} are not images by their ending and are left out")
    if len(name) < len(files):
        say(f"{len(files) - len(name):,} images of {root} lie outside of class folders and are left out")
    path = [f"{root}/{each}" for each in name]
    return Found(path, name, stamp, label, split, path.__getitem__, spaces=True)


def _depth(root: str, top: set[str]) -> int:
    """Folders above the class folders: 1 where the top folders are splits, else 0."""
    splits = {name for name in top if name.lower() in SPLIT_NAMES}
    if splits == top:
        return 1 if top else 0
    if len(splits) > 1 and "train" in map(str.lower, splits):  # a class may be called train; hardly two of the names
        raise InputError(
            f"{root} has split folders ({first_few(splits)}) and others ({first_few(top - splits)}); "
            f"keep only train, val (or validation) and test there, or only class folders"
        )
    return 0


def _check_layout(root: str, top: set[str], folders: set[str], files: list[tuple[str, str]], depth: int) -> None:
    """Refuse what looks like one level too many, or a split whose name is misspelt.

    Raises:
        InputError: it does.
    """
    direct = {name.rpartition("/")[0] for name, _ in files}
    holders = {folder for folder in top if folder not in direct and any(f.startswith(f"{folder}/") for f in folders)}
    if depth or not holders:
        return
    splits = {folder for folder in holders if folder.lower() in SPLIT_NAMES}
    if splits and holders != splits:
        raise InputError(
            f"{root} has the split folder {first_few(splits)} and {first_few(holders - splits)}, which is none; "
            f"name all of them train, val or test"
        )
    if len(top) == 1:
        (only,) = top
        raise InputError(f"{root} holds one folder, {only}, with folders in it; set data.source={root}/{only}")


def _scan(
    folder: str, inner: str, above: tuple[tuple[int, int], ...], files: list[tuple[str, str]], folders: set[str]
) -> int:
    """Collect the images under a folder; the number of other files. A folder inside itself (a link) is not entered."""
    ignored = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if entry.is_dir():
                identity = _identity(entry.stat())
                if identity not in above:
                    if inner.count("/") < 2:  # a split and a class
                        folders.add(inner + name)
                    ignored += _scan(entry.path, f"{inner}{name}/", (*above, identity), files, folders)
            elif _is_image(name):
                try:
                    files.append((inner + name, stamp_of(entry.stat())))
                except FileNotFoundError:  # a link to nothing: reading it will say so, with its name
                    files.append((inner + name, "gone"))
            else:
                ignored += 1
    return ignored


def _list_bucket(root: str, files: list[tuple[str, str]], folders: set[str]) -> int:
    ignored = 0
    for item in s3.listing(root):
        name = item.uri[len(root) + 1 :]
        *inner, last = name.split("/")
        if name.startswith(".") or "/." in name:
            continue
        folders.update("/".join(inner[: k + 1]) for k in range(min(len(inner), 2)))
        if _is_image(last):
            files.append((name, f"{item.size} {item.etag}"))
        else:
            ignored += 1
    return ignored


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_image(name: str) -> bool:
    return name[name.rfind(".") :].lower() in IMAGES
