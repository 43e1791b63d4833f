"""How people call splits: Training, seg_test, test_images, holdout."""

import re
from collections.abc import Collection, Mapping

from lfm.data.sources.base import SPLITS, TEST, TRAIN, VAL
from lfm.progress import say

KNOWN = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation"), VAL),
    **dict.fromkeys(("test", "testing", "tst", "holdout"), TEST),
}
EITHER = ("eval", "evaluation")
"""The test split, or the validation split where there is a test split, too."""
AROUND = frozenset(
    ("seg", "set", "split", "data", "dataset", "folder", "images", "image", "imgs", "img", "photos", "jpg")
)
"""Words that change nothing: seg_train, test_images, train set."""


def _plain(word: str) -> str:
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", word)
    words = [part for part in re.findall(r"[^\W_]+", parted.casefold()) if part not in AROUND]
    return "".join(words).removesuffix("set")


def splits_of(words: Collection[str]) -> dict[str, int | None]:
    """The split that each word means, or None."""
    plain = {word: _plain(word) for word in words}
    found = {word: KNOWN.get(key) for word, key in plain.items()}
    free = next((split for split in (TEST, VAL) if split not in found.values()), None)
    return found | {word: free for word, key in plain.items() if key in EITHER}


def say_splits(where: str, found: Mapping[str, int | None]) -> None:
    """Tell which words were taken for which split, where it is not plain."""
    if any(split is not None and word.lower() != SPLITS[split] for word, split in found.items()):
        pairs = [f"{word} = {SPLITS[split]}" for word, split in sorted(found.items()) if split is not None]
        say(f"{where}: splits taken as {', '.join(pairs)}")
