"""Which of our modules a module needs: the code that a result depends on, and the code that a model takes along.

Nothing is imported to find out: the source is read, functions too, since heavy imports wait inside them.
"""

import ast
import functools
import hashlib
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGE = Path(__file__).parents[1].name

COMPUTING = {
    "PIL": "pillow", "accelerate": "accelerate", "numpy": "numpy", "open_clip": "open-clip-torch",
    "scipy": "scipy", "timm": "timm", "torch": "torch", "torchvision": "torchvision", "transformers": "transformers",
}  # fmt: skip
"""Module -> distribution of the libraries whose version can change a number."""


@functools.cache
def source_hash(*modules: str, root: Path = ROOT) -> str:
    """Names the code that these modules run: all of our modules that they import, and the libraries that compute.

    Comments, docstrings and layout do not count; everything that can change a result does.

    Args:
        modules: dotted names, as in `lfm.training.loop`.
        root: the folder that holds the package.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    libraries: set[str] = set()
    for name, source in sorted(closure(*modules, root=root).items()):
        libraries.update(found for found in source.imports if found in COMPUTING)
        digest.update(f"{name} {source.meaning}".encode())
    for library in sorted(libraries):
        digest.update(f"{library} {version(COMPUTING[library])}".encode())
    return digest.hexdigest()


def copy_code(module: str, folder: Path) -> Path:
    """Copy a module and all of our modules that it may ever import, in the layout of the package.

    Args:
        module: dotted name, as in `lfm.serving.predictor`.
        folder: gets the package.

    Returns:
        The package in the folder.
    """
    for source in closure(module).values():
        target = folder / source.path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.path, target)
    return folder / PACKAGE


class Source(NamedTuple):
    """A module that was read."""

    path: Path
    imports: tuple[str, ...]
    """What it imports anywhere when it runs: our modules by their dotted names, libraries by that of the package."""
    meaning: str
    """Hash of its syntax tree without docstrings; comments and layout are no part of that."""


def closure(*modules: str, root: Path = ROOT) -> dict[str, Source]:
    """Our modules that these import, directly or through others, themselves among them.

    Args:
        modules: dotted names.
        root: the folder that holds the package.

    Returns:
        Dotted name -> what was read.
    """
    found: dict[str, Source] = {}
    todo = list(modules)
    while todo:
        parts = todo.pop().split(".")
        for name in (".".join(parts[:k]) for k in range(1, len(parts) + 1)):  # a package's __init__ runs first
            if name not in found and (path := _file(name, root)):
                found[name] = _read(path, path.stat().st_mtime_ns)
                todo += found[name].imports
    for module in modules:
        assert module in found, f"no source for {module}"
    return found


def _file(name: str, root: Path) -> Path | None:
    if name.partition(".")[0] != PACKAGE:
        return None
    place = root / Path(*name.split("."))
    return next((path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()), None)


@functools.cache
def _read(path: Path, changed: int) -> Source:
    """Read a file once as long as it has not `changed` (nanoseconds since 1970)."""
    tree = ast.parse(path.read_text())
    imports = tuple(_imports(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [one for one in node.body if not _is_text(one)] or [ast.Pass()]
    return Source(path, imports, hashlib.blake2b(ast.dump(tree).encode(), digest_size=16).hexdigest())


def _imports(tree: ast.Module) -> Iterator[str]:
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            todo += node.orelse
            continue
        todo += ast.iter_child_nodes(node)
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (name if name.partition(".")[0] == PACKAGE else name.partition(".")[0] for name in names)


def _is_text(node: ast.stmt) -> bool:
    """Whether a statement is a text and nothing else: a docstring, of a field too."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
