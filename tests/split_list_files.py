"""The lists of the published splits, small or whole."""

from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

from lfm.config.schema import DataConfig
from lfm.data.sources.base import Source

Rows = list[tuple[str, int]]
S3 = "s3://bucket/images"


def write_list(path: Path, rows: Rows) -> None:
    path.write_text("".join(f"{image} {label}\n" for image, label in rows), encoding="utf-8")


def touch(root: Path, *images: str) -> None:
    for image in images:
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        (root / image).write_bytes(image.encode())


# --- one list ---

words = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=5)
images = st.lists(words, min_size=1, max_size=3).map(" ".join)
Loader = Callable[[DataConfig], Source]
