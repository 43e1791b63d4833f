"""The part of our code that travels with a registered model: what it imports, and no more."""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = Path(__file__).parents[1].name


def copy_code(module: str, folder: Path) -> Path:
    """Copy a module and all of our modules that it may ever import, in the layout of the package.

    Args:
        module: of this package, as `lfm.serving.predictor`.
        folder: gets the package.

    Returns:
        The package in the folder.
    """
    for path in _reached(module):
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return folder / PACKAGE


def _reached(module: str) -> set[Path]:
    found: dict[str, Path] = {}
    todo = [module]
    while todo:
        parts = todo.pop().split(".")
        for name in (".".join(parts[:k]) for k in range(1, len(parts) + 1)):  # a package's __init__ runs first
            if name not in found and (path := _file(name)):
                found[name] = path
                todo += _imports(path)
    return set(found.values())


def _file(name: str) -> Path | None:
    if name.partition(".")[0] != PACKAGE:
        return None
    place = ROOT / Path(*name.split("."))
    return next((path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()), None)


def _imports(path: Path) -> Iterator[str]:
    """Of the whole file, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
