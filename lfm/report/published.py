"""Published results to hold a run against, with the weights they began from: never ours.

Top-1 accuracy in percent. A score is comparable only with the same weights: CLIP models trained on other images differ
untrained by more than methods do. Sources: the paper's Tables 1 to 5 (BMVC 2024), and the papers named in a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OPENAI_32, OPENAI_16 = "CLIP ViT-B/32, OpenAI", "CLIP ViT-B/16, OpenAI"
NOT_CLIP = "not stated in the table"


@dataclass(frozen=True)
class Published:
    """A published row.

    Args:
        source: where it stands.
        data: data set and imbalance factor, as in `key`.
        method: as the source names it.
        weights: what it began from.
        many: accuracy of the group; None where the source has none.
        medium: as many.
        few: as many.
        all: of all test images.
    """

    source: str
    data: str
    method: str
    weights: str
    many: float | None
    medium: float | None
    few: float | None
    all: float | None

    @property
    def scores(self) -> Mapping[str, float | None]:
        """As a run's scores."""
        return {"many": self.many, "medium": self.medium, "few": self.few, "all": self.all}


def key(data: Mapping[str, Any]) -> str:
    """Names a long-tailed data set: `cifar100@100`, `imagenet-lt`.

    Args:
        data: `name`, `profile` and `imbalance` of `DataConfig`.
    """
    long_tailed = data["profile"] == "exponential"
    return f"{data['name']}@{float(data['imbalance']):g}" if long_tailed else str(data["name"])


def _rows(source: str, data: str, weights: str, text: str) -> list[Published]:
    """A line a row: method | many medium few all; a row with weights of its own names them after an @."""
    rows = []
    for line in text.strip().splitlines():
        name, _, numbers = line.partition("|")
        method, _, own = name.strip().partition(" @ ")
        values = [None if cell == "-" else float(cell) for cell in numbers.split()]
        many, medium, few, all_ = values if len(values) == 4 else (None, None, None, *values)
        rows.append(Published(source, data, method, own or weights, many, medium, few, all_))
    return rows


TABLE_1 = _rows(
    "Table 1",
    "cifar100@100",
    OPENAI_32,
    """
    zero-shot | 63.5 60.8 61.4 62.0
    CE        | 79.3 67.4 53.9 67.5
    BalCE     | 74.6 69.8 57.4 67.6
    Focal     | 80.2 65.0 54.0 66.9
    LDAM      | 81.6 70.4 58.1 70.5
    MMS       | 90.3 75.2 58.1 75.2
    LFM + CE  | 81.2 79.6 68.6 77.3
    LFM + MMS | 81.0 81.3 76.5 79.4
    """,
)
TABLE_2_DATA = ("cifar10@100", "cifar10@50", "cifar10@10", "cifar100@100", "cifar100@50", "cifar100@10")
_TABLE_2 = """
    BBN    | 79.8 82.2 88.3 42.6 47.0 59.1
    LDAM (from scratch) @ from scratch | 77.0 - 88.2 42.0 - 58.7
    LiVT   | 86.3 - 91.3 58.2 - 69.2
    RIDE   | - - - 48.0 51.7 61.8
    SHIKE  | - - - 56.3 59.8 -
    TADE   | - - - 49.8 53.9 63.6
    GLMC   | 87.8 90.2 94.0 57.1 62.3 72.3
    MARC   | 85.3 - - 50.8 - -
    CE @ CLIP ViT-B/32, OpenAI        | 89.8 90.0 91.6 67.5 68.1 70.4
    BalCE @ CLIP ViT-B/32, OpenAI     | 91.3 91.6 92.4 67.6 68.8 70.8
    Focal @ CLIP ViT-B/32, OpenAI     | 89.8 90.0 91.6 66.9 68.6 70.4
    LDAM @ CLIP ViT-B/32, OpenAI      | 89.7 91.5 94.6 70.5 72.1 77.2
    MMS @ CLIP ViT-B/32, OpenAI       | 93.3 94.5 94.4 75.2 77.5 82.0
    LFM + CE @ CLIP ViT-B/32, OpenAI  | 93.8 95.2 96.6 77.3 78.2 82.6
    LFM + MMS @ CLIP ViT-B/32, OpenAI | 90.0 91.0 97.0 79.4 81.1 85.7
"""


def _table_2() -> list[Published]:
    rows = []
    for line in _TABLE_2.strip().splitlines():
        name, _, numbers = line.partition("|")
        for data, cell in zip(TABLE_2_DATA, numbers.split(), strict=True):
            rows += _rows("Table 2", data, NOT_CLIP, f"{name} | {cell}")
    return rows


TABLE_2 = _table_2()
TABLE_3 = _rows(
    "Table 3",
    "imagenet-lt",
    NOT_CLIP,
    """
    CE    | 64.0 33.8 5.8 41.6
    LDAM  | 60.4 46.9 30.7 49.8
    LiVT  | 76.4 59.7 42.7 63.8
    RIDE  | 68.3 53.5 35.9 56.8
    SHIKE | - - - 59.7
    TADE  | 66.5 57.0 43.5 58.8
    GLMC  | 70.1 55.9 45.5 57.2
    MARC  | 60.4 50.3 36.6 52.3
    zero-shot @ CLIP ViT-B/16, OpenAI | 69.2 66.8 65.8 67.6
    LFM + CE @ CLIP ViT-B/16, OpenAI  | 69.8 71.8 68.7 70.6
    LFM + MMS @ CLIP ViT-B/16, OpenAI | 79.7 71.4 51.3 71.7
    """,
)
TABLE_4 = _rows(
    "Table 4",
    "places-lt",
    NOT_CLIP,
    """
    CE    | 45.7 27.3 8.2 30.2
    Focal | 41.1 34.8 22.4 34.6
    LiVT  | 50.7 42.4 27.9 42.6
    SHIKE | 43.6 39.2 44.8 41.9
    TADE  | 43.1 42.4 33.2 40.9
    MARC  | 39.9 39.8 32.6 38.4
    zero-shot @ CLIP ViT-B/16, OpenAI | 36.8 35.8 45.1 38.1
    LFM + CE @ CLIP ViT-B/16, OpenAI  | 41.3 43.5 46.2 42.3
    LFM + MMS @ CLIP ViT-B/16, OpenAI | 45.2 48.5 46.6 46.9
    """,
)
TABLE_5 = _rows(
    "Table 5",
    "cifar100@100",
    OPENAI_16,
    """
    Mixup | 80.4 71.5 55.1 69.5
    Remix | 79.6 71.5 55.7 69.4
    LFM   | 83.4 83.3 72.8 80.1
    """,
)
LIFT_CROPS = "LIFT, five crops a test image"
"""Test-time ensembling, at five times the cost; never to be held against a score of one crop."""
ELSEWHERE = [
    *_rows("listed with LIFT", "imagenet-lt", OPENAI_16, "zero-shot | 69.2 67.6 67.7 68.3"),
    *_rows("LIFT, ICML 2024", "imagenet-lt", OPENAI_16, f"LIFT | 77.0\n{LIFT_CROPS} | 81.3 77.4 73.4 78.3"),
    *_rows("LIFT, ICML 2024", "places-lt", OPENAI_16, f"LIFT | 51.5\n{LIFT_CROPS} | 51.3 52.2 50.5 52.2"),
    *_rows("LIFT, ICML 2024", "inaturalist2018", OPENAI_16, f"LIFT | 79.1\n{LIFT_CROPS} | 80.4"),
    *_rows("listed with LIFT", "cifar100@100", OPENAI_16, "zero-shot | 67.0"),
    *_rows("LIFT, ICML 2024", "cifar100@100", OPENAI_16, f"LIFT | 80.3\n{LIFT_CROPS} | 81.7"),
    *_rows("LIFT, ICML 2024", "cifar100@50", OPENAI_16, f"LIFT | 82.0\n{LIFT_CROPS} | 83.1"),
    *_rows("LIFT, ICML 2024", "cifar100@10", OPENAI_16, f"LIFT | 83.8\n{LIFT_CROPS} | 84.9"),
    *_rows("LT-Soups, NeurIPS 2025", "imagenet-lt", OPENAI_16, "LT-Soups | 77.4"),
    *_rows("LT-Soups, NeurIPS 2025", "places-lt", OPENAI_16, "LT-Soups | 51.7"),
    *_rows("LT-Soups, NeurIPS 2025", "cifar100@100", OPENAI_16, "LT-Soups | 83.5"),
    *_rows("VL-LTR", "imagenet-lt", f"{OPENAI_16}, and text from the web", "VL-LTR | 77.2"),
    *_rows("VL-LTR", "places-lt", f"{OPENAI_16}, and text from the web", "VL-LTR | 50.1"),
    *_rows(
        "RetFormer, CVPR 2026", "imagenet-lt", "CLIP, DataComp, and external data", "RetFormer | 85.0 80.9 76.8 81.9"
    ),
    *_rows("RetFormer, CVPR 2026", "places-lt", "CLIP, DataComp, and external data", "RetFormer | 52.7 52.1 51.9 52.3"),
]
"""Beside the paper: the best of the field."""


def for_data(data: Mapping[str, Any]) -> Sequence[Published]:
    """The published rows of a data set, a row once where two of the paper's tables repeat it."""
    wanted = key(data)
    rows = [row for row in (*TABLE_1, *TABLE_2, *TABLE_3, *TABLE_4, *TABLE_5, *ELSEWHERE) if row.data == wanted]
    fuller = {(row.method, row.weights) for row in rows if row.many is not None}
    return [row for row in rows if row.many is not None or (row.method, row.weights) not in fuller]
