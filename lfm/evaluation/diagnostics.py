"""What a report needs of a model and its test images, as small arrays: the report is then made without either.

Letters in the names give shapes: N images, C classes, D embedding dimensions, B images of a block, R rows of a block,
M chosen images.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lfm.backbones.model import LFM
from lfm.config.schema import RunConfig
from lfm.data.images import Images
from lfm.evaluation.inference import EVAL_BATCH, autocast
from lfm.evaluation.metrics import top_class
from lfm.method.analysis import BLOCK_ENTRIES
from lfm.method.mixup import local_sampling_rows
from lfm.method.partners import Barred

PAPER_PAIRS = (
    ("apple", "pear"), ("lobster", "crab"), ("snake", "worm"), ("bed", "couch"), ("bicycle", "motorcycle"),
)  # fmt: skip
"""Of Fig. 3, on CIFAR-100."""
PAIRS = 5
HEAD_RATIO = 2.0
"""A head neighbour has at least so many times the training images."""
ALL_SHOWN = 20
"""Up to so many classes, figures of class against class show all; of more, those of the pairs."""
MARGIN_IMAGES = 200
EMBEDDED_IMAGES = 400
PERPLEXITY, ITERATIONS, TSNE_SEED = 30.0, 1000, 1
RANKED_CLASSES = 1000
CONFUSED = 20
WORST_CLASSES, WORST_IMAGES = 8, 4
THUMBNAIL = 64


@dataclass(frozen=True)
class Answer:
    """What a model says to every image of a split, in the split's order.

    Args:
        unit_ND: f_I, image features of unit length; on the model's device.
        unit_CD: what they are compared with, a row of unit length a class; there too.
        predicted_N: class of the largest logit, int32.
        confidence_N: its probability, float32.
    """

    unit_ND: Tensor
    unit_CD: Tensor
    predicted_N: NDArray[np.int32]
    confidence_N: NDArray[np.float32]


@torch.inference_mode()
def answer(model: LFM, feature_ND: Tensor, config: RunConfig, temperature: float) -> Answer:
    """Predictions and confidences from what the image tower gave, as `lfm.evaluation.inference.score_split` counts.

    Args:
        model: any stage.
        feature_ND: from `lfm.evaluation.inference.image_features`, of one process.
        config: of the run; its precision.
        temperature: that serving divides the cosines by.
    """
    unit, predicted, confidence = [], [], []
    with autocast(config, feature_ND.device):
        for block_BD in feature_ND.split(EVAL_BATCH):
            unit_BD = model.unit(block_BD)
            logits_BC = model.head(block_BD)
            predicted_B = top_class(logits_BC)
            chance_BC = (logits_BC.float() / temperature).softmax(dim=1)
            unit.append(unit_BD)
            predicted.append(predicted_B.int().cpu())
            confidence.append(chance_BC.gather(1, predicted_B[:, None])[:, 0].cpu())
    return Answer(torch.cat(unit), model.unit_CD, torch.cat(predicted).numpy(), torch.cat(confidence).numpy())


def choose_pairs(names: Sequence[str], count_C: Tensor, text_CD: Tensor, few_C: Tensor) -> list[tuple[int, int]]:
    """Pairs (tail class, its head neighbour) for figures that cannot show every class.

    The paper's pairs where all their classes are there. Else each class's nearest class in text among those with at
    least twice its images; few-shot tails first, then by similarity, and no class twice. Where no class has twice the
    images of another, the nearest whatever its images.

    Args:
        names: of the classes.
        count_C: training images.
        text_CD: class embeddings, rows of unit length.
        few_C: whether a class is few-shot.
    """
    place = {name: k for k, name in enumerate(names)}
    if all(name in place for pair in PAPER_PAIRS for name in pair):
        found = [(place[a], place[b]) for a, b in PAPER_PAIRS]
        return [(a, b) if count_C[a] <= count_C[b] else (b, a) for a, b in found]
    ratio = HEAD_RATIO if float(count_C.max()) >= HEAD_RATIO * float(count_C.min()) else 0.0
    near, cosine = [], []
    for class_R in torch.arange(len(names)).split(max(1, BLOCK_ENTRIES // len(names))):
        similar_RC = (text_CD[class_R] @ text_CD.T).scatter_(1, class_R[:, None], -torch.inf)
        similar_RC[count_C[None, :] < ratio * count_C[class_R][:, None]] = -torch.inf
        best = similar_RC.max(dim=1)
        near.append(best.indices)
        cosine.append(best.values)
    near_C, cosine_C = torch.cat(near), torch.cat(cosine)
    chosen: list[tuple[int, int]] = []
    used: set[int] = set()
    for tail in torch.argsort(cosine_C + 10 * few_C.float(), descending=True, stable=True).tolist():
        head = int(near_C[tail])
        if len(chosen) < PAIRS and cosine_C[tail].isfinite() and not {tail, head} & used:
            chosen.append((tail, head))
            used |= {tail, head}
    return chosen


def shown_classes(classes: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The classes of figures that set class against class."""
    return list(range(classes)) if classes <= ALL_SHOWN else [k for pair in pairs for k in pair]


def some_of(label_N: NDArray[np.int64], k: int, most: int) -> NDArray[np.int64]:
    """Positions of the first images of class k, at most so many."""
    return np.flatnonzero(label_N == k)[:most]


def margins(of: Answer, label_N: NDArray[np.int64], pairs: Sequence[tuple[int, int]]) -> list[dict[str, list[float]]]:
    """f_I . (f_Tt - f_Th) of test images of a tail class t and its head neighbour h (Figs. 1 and 8).

    The two classes' decision boundary is at 0: above it, the tail class's logit is the larger one.
    """
    found = []
    for tail, head in pairs:
        direction_D = of.unit_CD[tail] - of.unit_CD[head]
        of_class = (some_of(label_N, k, MARGIN_IMAGES) for k in (tail, head))
        values = [(of.unit_ND[torch.from_numpy(n).to(of.unit_ND.device)] @ direction_D).tolist() for n in of_class]
        found.append({name: [round(v, 5) for v in side] for name, side in zip(("tail", "head"), values, strict=True)})
    return found


def embedded_images(label_N: NDArray[np.int64], classes: Sequence[int]) -> NDArray[np.int64]:
    """Positions of the images that t-SNE shows: the same number of each class."""
    each = EMBEDDED_IMAGES // max(1, len(classes))
    return np.concatenate([some_of(label_N, k, each) for k in classes]) if classes else np.zeros(0, np.int64)


def tsne(unit_MD: NDArray[np.float32]) -> list[list[int]]:
    """t-SNE in three dimensions, 1,000 iterations, seed 1 (Fig. 3), scaled to whole numbers of -999 to 999."""
    from sklearn.manifold import TSNE

    if len(unit_MD) < 5 or np.ptp(unit_MD, axis=0).max() < 1e-6:  # nothing to tell apart
        return []
    method = TSNE(
        3, perplexity=min(PERPLEXITY, (len(unit_MD) - 1) / 3), max_iter=ITERATIONS, init="pca", random_state=TSNE_SEED
    )
    place_M3 = np.asarray(method.fit_transform(unit_MD), dtype=np.float64)
    place_M3 -= (place_M3.max(axis=0) + place_M3.min(axis=0)) / 2
    scaled_M3 = (999 * place_M3 / max(np.abs(place_M3).max(), 1e-12)).round()
    return [[int(v) for v in place] for place in scaled_M3]


def confused(label_N: NDArray[np.int64], predicted_N: NDArray[np.int32], classes: int) -> NDArray[np.int64]:
    """Pairs (truth, taken for, images) that happen, truth and answer different, the most frequent first. (P, 3)."""
    wrong = label_N != predicted_N
    pair, images = np.unique(label_N[wrong] * classes + predicted_N[wrong], return_counts=True)
    order = np.argsort(-images, kind="stable")
    return np.stack([pair[order] // classes, pair[order] % classes, images[order]], axis=1)


def affinity(text_CD: Tensor, tau: float, classes: Sequence[int], barred: Barred | None = None) -> dict[str, Any]:
    """Cosines and p_ls (row: given, column: partner) among some classes (Fig. 7)."""
    chosen = torch.tensor(list(classes), dtype=torch.long)
    cosine = text_CD[chosen] @ text_CD[chosen].T
    partner = local_sampling_rows(text_CD, chosen, tau, barred)[:, chosen]
    return {"classes": list(classes), "cosine": rounded(cosine), "partner": rounded(partner)}


def rounded(values: Tensor) -> Any:
    """As lists, of six significant digits."""
    flat = [float(f"{v:.6g}") for v in values.double().flatten().tolist()]
    return np.asarray(flat).reshape(values.shape).tolist()


def similarity_and_confusion(
    text_CD: Tensor, label_N: NDArray[np.int64], predicted_N: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Text cosine and share of images taken for the other class, of every ordered pair of classes.

    Of more than `RANKED_CLASSES` classes, a fixed random draw of so many, so that memory stays flat.

    Returns:
        Cosines and shares, one a pair, and the number of classes they are of.
    """
    classes = len(text_CD)
    chosen = np.sort(np.random.default_rng(0).permutation(classes)[:RANKED_CLASSES])
    place = np.full(classes, -1)
    place[chosen] = np.arange(len(chosen))
    row_N, column_N = place[label_N], place[predicted_N]
    total_K = np.bincount(row_N[row_N >= 0], minlength=len(chosen))
    inside = (row_N >= 0) & (column_N >= 0)
    size = len(chosen) ** 2
    count_KK = np.bincount(row_N[inside] * len(chosen) + column_N[inside], minlength=size).reshape(-1, len(chosen))
    share_KK = count_KK / np.maximum(total_K, 1)[:, None]
    text_KD = text_CD[torch.from_numpy(chosen)].double()
    other = ~np.eye(len(chosen), dtype=bool) & (total_K > 0)[:, None]
    return (text_KD @ text_KD.T).numpy()[other], share_KK[other], len(chosen)


def worst(label_N: NDArray[np.int64], of: Answer, classes: int) -> list[dict[str, Any]]:
    """The classes with the lowest accuracy, and their most confidently wrong images.

    Returns:
        `class` and `images`: for each its position `row`, `taken_for` and `confidence`.
    """
    right = label_N == of.predicted_N
    total_C = np.bincount(label_N, minlength=classes)
    accuracy_C = np.where(total_C > 0, np.bincount(label_N[right], minlength=classes) / np.maximum(total_C, 1), 2)
    found = []
    for k in np.argsort(accuracy_C, kind="stable")[:WORST_CLASSES]:
        rows = np.flatnonzero((label_N == k) & ~right)
        rows = rows[np.argsort(-of.confidence_N[rows], kind="stable")][:WORST_IMAGES]
        images = [
            {"row": int(n), "taken_for": int(of.predicted_N[n]), "confidence": round(float(of.confidence_N[n]), 4)}
            for n in rows
        ]
        found += [{"class": int(k), "images": images}] if len(images) else []
    return found


def thumbnail(images: Images, row: int) -> str:
    """An image of a split as a small JPEG in a data: URI."""
    pixels = images.fetch(torch.tensor([row]))[0].cpu()
    picture = Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy())
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
