"""Metrics against plain Python loops over images."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lfm.config.schema import GROUPS, ShotsConfig
from lfm.evaluation.metrics import accuracy, confusion, hits, metrics, predict, shot_group, top_class

TEXT, CODE = ShotsConfig(), ShotsConfig(few=21)


def percent(right: int, images: int) -> float | None:
    return 100 * right / images if images else None


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), classes=st.integers(2, 7), images=st.integers(0, 40))
def test_metrics_equal_a_loop_over_the_images(data: st.DataObject, classes: int, images: int) -> None:
    a_class = st.integers(0, classes - 1)
    truth = data.draw(st.lists(a_class, min_size=images, max_size=images))
    guess = data.draw(st.lists(a_class, min_size=images, max_size=images))
    counts = data.draw(
        st.lists(st.sampled_from([1, 19, 20, 21, 99, 100, 101, 500]), min_size=classes, max_size=classes)
    )
    predicted_N, label_N = torch.tensor(guess, dtype=torch.long), torch.tensor(truth, dtype=torch.long)
    found = metrics(confusion(predicted_N, label_N, classes), torch.tensor(counts), TEXT)

    group = ["many" if n > 100 else "few" if n < 20 else "medium" for n in counts]
    pairs = list(zip(truth, guess, strict=True))
    without = accuracy(hits(predicted_N, label_N, classes), torch.tensor(counts), TEXT)
    assert found == without | {"confusion": found["confusion"]}
    for name in GROUPS:
        inside = [(t, g) for t, g in pairs if group[t] == name]
        assert found[name] == pytest.approx(percent(sum(t == g for t, g in inside), len(inside)))
    assert found["all"] == pytest.approx(percent(sum(t == g for t, g in pairs), images))
    assert found["images"] == images
    for k in range(classes):
        of_class = [g for t, g in pairs if t == k]
        assert found["per_class"][k] == pytest.approx(percent(of_class.count(k), len(of_class)))
        assert found["confusion"][k] == [of_class.count(other) for other in range(classes)]


def test_confusion_has_the_truth_in_rows() -> None:
    label_N, predicted_N = torch.tensor([0, 0, 0, 2]), torch.tensor([1, 1, 0, 1])
    assert confusion(predicted_N, label_N, 3).tolist() == [[1, 2, 0], [0, 0, 0], [0, 1, 0]]


def test_a_class_without_test_images_has_no_score_and_counts_nowhere() -> None:
    found = metrics(torch.tensor([[3, 1], [0, 0]]), torch.tensor([500, 5]), TEXT)
    assert found["per_class"] == [75.0, None]
    assert (found["all"], found["many"], found["few"], found["medium"]) == (75.0, 75.0, None, None)


def test_an_empty_group_is_none_and_a_group_that_is_all_wrong_is_zero() -> None:
    found = metrics(torch.tensor([[4, 0], [5, 0]]), torch.tensor([101, 100]), TEXT)
    assert (found["many"], found["medium"], found["few"]) == (100.0, 0.0, None)
    assert metrics(torch.zeros(2, 2, dtype=torch.long), torch.tensor([9, 9]), TEXT)["all"] is None


def test_groups_weigh_images_not_classes() -> None:
    found = metrics(torch.tensor([[90, 0], [10, 0]]), torch.tensor([500, 400]), TEXT)
    assert found["many"] == 90.0


@pytest.mark.parametrize(
    ("shots", "images", "group"),
    [
        (TEXT, 1, "few"), (TEXT, 19, "few"), (TEXT, 20, "medium"), (TEXT, 21, "medium"),
        (TEXT, 100, "medium"), (TEXT, 101, "many"), (TEXT, 5000, "many"),
        (CODE, 20, "few"), (CODE, 21, "medium"), (CODE, 100, "medium"), (CODE, 101, "many"),
        (ShotsConfig(many=5, few=6), 5, "few"), (ShotsConfig(many=5, few=6), 6, "many"),
    ],
)  # fmt: skip
def test_the_shot_group_of_a_class(shots: ShotsConfig, images: int, group: str) -> None:
    assert shot_group(torch.tensor([images]), shots) == [group]


def test_the_demos_classes_fall_into_five_three_and_two() -> None:
    counts = torch.tensor([1000, 599, 359, 215, 129, 77, 46, 27, 16, 10])
    assert shot_group(counts, TEXT) == ["many"] * 5 + ["medium"] * 3 + ["few"] * 2


def test_predict_takes_the_largest_logit_of_every_image_in_order() -> None:
    rows = [[0.1, 0.9, -1.0], [0.5, 0.4, 0.3], [-3.0, -2.0, -1.0], [0.0, 7.0, 6.0], [2.0, 1.0, 0.0]]
    logits_NC = torch.tensor(rows)
    found = predict(lambda index_B: logits_NC[index_B], torch.arange(5).split(2))
    assert found.tolist() == [row.index(max(row)) for row in rows] and found.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_first_of_equal_logits_is_taken(dtype: torch.dtype) -> None:
    """Few distinct values, so that nearly every row has its largest more than once; infinities, no number, strides."""
    logits_NC = torch.randint(0, 3, (500, 40), generator=torch.Generator().manual_seed(0)).to(dtype)
    logits_NC[:100] -= 1  # also the two zeros
    logits_NC[100:110] = -torch.inf
    logits_NC[120:130, 7:9] = torch.inf
    for logits in (logits_NC, logits_NC.T.contiguous().T, logits_NC.requires_grad_()):
        expected = [row.index(max(row)) for row in logits.tolist()]
        found = top_class(logits)
        assert found.tolist() == expected and found.dtype == torch.int64
    unknown = torch.tensor([[0.0, torch.nan, torch.inf, torch.nan]], dtype=dtype)
    assert top_class(unknown).tolist() == unknown.argmax(dim=1).tolist() == [1]
