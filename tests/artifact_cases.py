"""z"""

from pathlib import Path

INPUTS = {"data": {"name": "x", "n": 3}, "seed": 0}


def fill(folder: Path) -> None:
    (folder / "a.bin").write_bytes(bytes(range(256)))
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "b.json").write_text('{"b": 1}')


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
