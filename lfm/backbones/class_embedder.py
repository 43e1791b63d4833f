"""Classes by name at request time: the text tower embeds them, as it embedded those of training.

Letters give shapes: M new classes, D embedding dimensions.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lfm.backbones.openclip import Encoder
from lfm.backbones.text_encoders import embed_new, encoder
from lfm.config.schema import TextConfig
from lfm.errors import InputError

MOST_NAMES, LONGEST_NAME = 100, 100
KEPT = 4096
"""Embeddings in memory: of 768 dimensions some 12 MB."""


class Words:
    """Embeddings of new class names; the text tower is loaded with the first of them. Safe in threads.

    Args:
        config: encoder and templates of training.
        folder: the text half of an open_clip model (`lfm.backbone.keep_text_half`); minilm needs none.
    """

    def __init__(self, config: TextConfig, folder: Path | None) -> None:
        self.config, self.folder = config, folder
        self._encode: Encoder | None = None
        self._known: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, names: Sequence[str]) -> Tensor:
        """Unit embeddings, (M, D) float32; a name asked for before costs nothing."""
        with self._lock:
            new = [name for name in dict.fromkeys(names) if name not in self._known]
            if new:
                self._encode = self._encode or encoder(self.config, self.folder)
                self._known |= zip(new, embed_new(new, self.config, self._encode), strict=True)
            for name in names:
                self._known.move_to_end(name)
            found_MD = torch.stack([self._known[name] for name in names])
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
            return found_MD


def checked(names: Sequence[str], classes: Sequence[str]) -> list[str]:
    """New class names without needless spaces.

    Args:
        names: as they came.
        classes: of the model.

    Raises:
        InputError: too many, too long, empty, unprintable, twice, or a class of the model.
    """
    if len(names) > MOST_NAMES:
        raise InputError(f"{len(names)} new classes were named; name at most {MOST_NAMES} at a time")
    known, plain = {_folded(name) for name in classes}, [" ".join(str(name).split()) for name in names]
    for name in plain:
        if not name or len(name) > LONGEST_NAME or not name.isprintable():
            raise InputError(f"new class {name[:20]!r}: a name has 1 to {LONGEST_NAME} printable characters")
        if _folded(name) in known:
            raise InputError(f"new class {name!r} is named twice, or a class of the model: leave it out")
        known.add(_folded(name))
    return plain


def _folded(name: str) -> str:
    return " ".join(name.lower().split())
