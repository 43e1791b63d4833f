"""What is kept of an evaluation: the pairs, margins, confusions and answers a report is made from."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F  # noqa: N812

from lfm.backbones.model import LFM
from lfm.backbones.towers import Preprocess
from lfm.config.presets import load
from lfm.config.schema import RunConfig
from lfm.data.images import Images
from lfm.evaluation import diagnostics
from lfm.evaluation.metrics import confusion, metrics
from lfm.method.mixup import local_sampling_rows


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def answered(predicted: list[int], confidence: list[float] | None = None) -> diagnostics.Answer:
    sure = confidence or [0.5] * len(predicted)
    predicted_N, confidence_N = np.array(predicted, np.int32), np.array(sure, np.float32)
    return diagnostics.Answer(unit(len(predicted), 8), unit(7, 8, seed=5), predicted_N, confidence_N)


def test_answers_are_the_models_own_with_softmax_probabilities() -> None:
    model = LFM(torch.nn.Identity(), unit(7, 16)).eval()
    torch.nn.init.normal_(model.w.weight, generator=torch.Generator().manual_seed(1))
    feature_ND = torch.randn(2500, 16, generator=torch.Generator().manual_seed(2))
    config = load("fashion-mnist-lt", {"train.precision": "fp32"})
    of = diagnostics.answer(model, feature_ND, config, 0.05)
    with torch.no_grad():
        chance = torch.exp(model.head(feature_ND).double() / 0.05)
        chance /= chance.sum(dim=1, keepdim=True)
    assert of.predicted_N.dtype == np.int32 and of.confidence_N.dtype == np.float32
    assert of.predicted_N.tolist() == chance.argmax(dim=1).tolist()
    assert of.confidence_N == pytest.approx(chance.max(dim=1).values.numpy(), abs=1e-4)
    assert torch.allclose(of.unit_ND @ model.text_CD.T, model.head(feature_ND), atol=1e-6)


def test_the_papers_pairs_on_its_classes_tail_first() -> None:
    names = [*sorted({name for pair in diagnostics.PAPER_PAIRS for name in pair}), "whale"]
    count_C = torch.arange(len(names), 0, -1)  # falling in label order
    pairs = diagnostics.choose_pairs(names, count_C, unit(len(names), 8), torch.zeros(len(names), dtype=torch.bool))
    assert {frozenset((names[a], names[b])) for a, b in pairs} == {frozenset(pair) for pair in diagnostics.PAPER_PAIRS}
    assert all(count_C[a] < count_C[b] for a, b in pairs)


def test_elsewhere_each_tail_has_its_nearest_head_and_no_class_twice() -> None:
    count_C = torch.tensor([1000, 900, 500, 60, 30, 8, 5, 700, 600, 4])
    text_CD, few_C = unit(10, 6, seed=3), count_C < 20
    pairs = diagnostics.choose_pairs([str(k) for k in range(10)], count_C, text_CD, few_C)
    flat = [k for pair in pairs for k in pair]
    assert len(flat) == len(set(flat)) and 0 < len(pairs) <= diagnostics.PAIRS
    cosine = (text_CD @ text_CD.T).tolist()
    for tail, head in pairs:
        heads = [k for k in range(10) if k != tail and count_C[k] >= 2 * count_C[tail]]
        assert head == max(heads, key=lambda k: cosine[tail][k])
    assert few_C[pairs[0][0]], "few-shot tails come first"
    equal = diagnostics.choose_pairs(
        ["a", "b", "c"], torch.tensor([5, 5, 5]), unit(3, 4), torch.ones(3, dtype=torch.bool)
    )
    assert len(equal) == 1, "without a tail, the nearest"


def test_margins_are_differences_of_the_two_logits() -> None:
    of, label_N = answered([0] * 12), np.array([0, 1, 2, 3] * 3)
    (found,) = diagnostics.margins(of, label_N, [(2, 1)])
    logits = of.unit_ND @ of.unit_CD.T
    expected = (logits[:, 2] - logits[:, 1]).numpy()
    assert found["tail"] == pytest.approx(expected[label_N == 2], abs=1e-5)
    assert found["head"] == pytest.approx(expected[label_N == 1], abs=1e-5)


def test_confusions_are_those_of_the_dense_matrix() -> None:
    rng = np.random.default_rng(0)
    label_N, predicted_N = rng.integers(0, 6, 400), rng.integers(0, 6, 400).astype(np.int32)
    dense = confusion(torch.from_numpy(predicted_N).long(), torch.from_numpy(label_N), 6)
    found = diagnostics.confused(label_N, predicted_N, 6)
    assert len(found) == int(((dense > 0) & ~torch.eye(6, dtype=torch.bool)).sum())
    assert all(dense[i, j] == n for i, j, n in found.tolist())
    assert found[:, 2].tolist() == sorted(found[:, 2].tolist(), reverse=True)


def test_similarity_and_confusion_pair_every_two_classes_once_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    text_CD, label_N = unit(5, 8), rng.integers(0, 5, 300)
    predicted_N = rng.integers(0, 5, 300).astype(np.int32)
    cosine, share, classes = diagnostics.similarity_and_confusion(text_CD, label_N, predicted_N)
    expected = {
        (i, j): (float(text_CD[i] @ text_CD[j]), float(np.mean(predicted_N[label_N == i] == j)))
        for i in range(5)
        for j in range(5)
        if i != j
    }
    assert classes == 5
    assert np.stack([cosine, share], axis=1) == pytest.approx(np.array(list(expected.values())), abs=1e-6)
    monkeypatch.setattr(diagnostics, "RANKED_CLASSES", 3)
    assert len(diagnostics.similarity_and_confusion(text_CD, label_N, predicted_N)[0]) == 6


def test_affinity_is_local_sampling_among_the_chosen() -> None:
    text_CD = unit(30, 8)
    found = diagnostics.affinity(text_CD, 0.1, [3, 17])
    rows = local_sampling_rows(text_CD, torch.tensor([3, 17]), 0.1)
    assert found["partner"] == [
        [0.0, pytest.approx(rows[0, 17].item(), rel=1e-5)],
        [pytest.approx(rows[1, 3].item(), rel=1e-5), 0.0],
    ]
    assert diagnostics.shown_classes(10, [(1, 2)]) == list(range(10)) and diagnostics.shown_classes(21, [(1, 2)]) == [
        1,
        2,
    ]


def test_the_worst_classes_have_their_surest_mistakes() -> None:
    label_N = np.array([0] * 6 + [1] * 4 + [2] * 2)
    of = answered([1, 1, 1, 1, 1, 0, 1, 1, 1, 0, 2, 2], [0.1, 0.5, 0.9, 0.3, 0.2, 1, 1, 1, 1, 0.4, 1, 1])
    found = diagnostics.worst(label_N, of, 4)  # class 3 has no test images, class 2 no mistakes
    assert [item["class"] for item in found] == [0, 1]
    assert [image["row"] for image in found[0]["images"]] == [2, 1, 3, 4]
    assert found[1]["images"] == [{"row": 9, "taken_for": 0, "confidence": pytest.approx(0.4)}]


@pytest.mark.slow
def test_tsne_keeps_clusters_apart_and_is_the_same_each_time() -> None:
    rng = np.random.default_rng(0)
    center = rng.normal(size=(3, 10)) * 4
    points = (center[np.arange(150) % 3] + rng.normal(size=(150, 10)) * 0.3).astype(np.float32)
    place = np.array(diagnostics.tsne(points))
    assert place.shape == (150, 3) and np.abs(place).max() == 999
    means = np.stack([place[k::3].mean(axis=0) for k in range(3)])
    nearest = ((place[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == np.arange(150) % 3).mean() > 0.95
    assert diagnostics.tsne(points) == place.tolist() and diagnostics.tsne(points[:3]) == []
    assert diagnostics.tsne(np.ones((20, 10), np.float32)) == [], "a model that says the same of every image"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_thumbnail_is_the_image_small(channels: int) -> None:
    pixels = torch.zeros(2, channels, 100, 200, dtype=torch.uint8)
    pixels[1] = 200
    to = Preprocess(0, (0.5,), (0.5,), "bicubic", "squash")
    images = Images(lambda index: pixels[index], (channels, 100, 200), torch.tensor([0, 1]), to, held=True)
    kind, _, data = diagnostics.thumbnail(images, 1).partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == "data:image/jpeg;base64" and picture.size == (64, 32)
    assert np.asarray(picture).mean() == pytest.approx(200, abs=2)


def test_the_same_number_of_images_of_each_class_is_embedded() -> None:
    label_N = np.repeat(np.arange(4), 500)
    shown = diagnostics.embedded_images(label_N, [1, 3])
    assert np.bincount(label_N[shown], minlength=4).tolist() == [0, 200, 0, 200]
    assert len(diagnostics.embedded_images(label_N, [])) == 0


def test_metrics_and_answers_agree(tiny_config: RunConfig) -> None:
    label_N = torch.tensor([0, 0, 1, 2])
    of = answered([0, 1, 1, 2])
    found = metrics(
        confusion(torch.from_numpy(of.predicted_N).long(), label_N, 3), torch.tensor([200, 50, 5]), tiny_config.shots
    )
    assert found["all"] == 100 * float(np.mean(of.predicted_N == label_N.numpy()))
