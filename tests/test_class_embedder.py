"""New classes by name: what is embedded, what is kept, what is refused."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lfm.backbones import class_embedder, openclip
from lfm.backbones.class_embedder import LONGEST_NAME, MOST_NAMES, Words, checked
from lfm.backbones.text_encoders import embed, encoder
from lfm.config.schema import TextConfig
from lfm.errors import InputError
from tests.serving import write_vit

PROMPTS = ("a photo of a {}", "{} in the wild")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Sentences that reached the real tower, call by call."""
    calls: list[list[str]] = []
    real = encoder

    def spying(*given: object) -> Callable[[list[str]], Tensor]:
        encode = real(*given)  # type: ignore[arg-type]

        def remembering(sentences: list[str]) -> Tensor:
            calls.append(sentences)
            return encode(sentences)

        return remembering

    monkeypatch.setattr(class_embedder, "encoder", spying)
    return calls


def test_a_new_class_is_embedded_as_those_of_training_are_and_only_once(asked: list[list[str]]) -> None:
    config = TextConfig(encoder="minilm", prompt=PROMPTS)
    expected_CD = embed(["snow leopard", "lynx", "puma"], config)
    ours = Words(config, None)
    assert torch.allclose(ours(["snow leopard", "lynx"]), expected_CD[:2], atol=1e-5)
    assert torch.allclose(ours(["puma", "lynx", "puma"]), expected_CD[[2, 1, 2]], atol=1e-5)
    assert [len(sentences) for sentences in asked] == [4, 2], "lynx was known"
    with ThreadPoolExecutor(8) as pool:
        many = list(pool.map(lambda k: ours([f"cat {k % 3}", "lynx"]), range(24)))
    assert sum(map(len, asked)) == 6 + 6 and all(torch.equal(one[1], many[0][1]) for one in many)


def test_what_was_asked_for_longest_ago_is_forgotten_first(
    asked: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_embedder, "KEPT", 2)
    ours = Words(TextConfig(encoder="minilm"), None)
    for name in ("a", "b", "a", "c", "a", "b"):
        ours([name])
    assert [sentence[0] for sentence in asked] == [f"a photo of a {name}" for name in ("a", "b", "c", "b")]


def test_the_text_half_gives_what_the_whole_backbone_gives_and_is_small(tmp_path: Path) -> None:
    folder, whole = write_vit(tmp_path / "served", tmp_path)
    config = TextConfig(encoder="backbone", prompt=PROMPTS)
    expected_CD = embed(["snow leopard", "lynx"], config, whole)
    assert torch.allclose(Words(config, folder / "text")(["snow leopard", "lynx"]), expected_CD, atol=1e-6)
    half = openclip.load(folder / "text")
    whole_net = openclip.load(whole)
    assert half.state_dict().keys() >= {k for k in whole_net.state_dict() if not k.startswith("visual.")}
    assert sum(w.numel() for name, w in half.named_parameters() if name.startswith("visual.")) < 100_000


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([""], "1 to 100 printable characters"),
        (["x" * (LONGEST_NAME + 1)], "1 to 100 printable"),
        (["a\x00b"], "printable"),
        (["bag"], "'bag' is named twice, or a class of the model"),
        (["owl", " OWL "], "'OWL' is named twice"),
        ([f"n{k}" for k in range(MOST_NAMES + 1)], "101 new classes were named; name at most 100"),
    ],
)
def test_names_that_are_none_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked(names, ["Bag", "Coat"])


def test_spaces_are_tidied() -> None:
    assert checked(["  snow   leopard "], ["Bag"]) == ["snow leopard"]
