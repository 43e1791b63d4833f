"""Long-tailed subsets against the totals of the paper and the published procedure."""

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfm.data.subsets import Index, hold_out, profile, subset
from lfm.errors import InputError

few = settings(max_examples=60, deadline=None, derandomize=True)
labels = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(lambda label: np.array(label, dtype=np.int64))


def shuffled_labels(classes: int, per_class: int, seed: int = 1) -> Index:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), per_class))


@pytest.mark.parametrize(
    ("classes", "imbalance", "total", "most", "fewest"),
    [
        (10, 10, 20_431, 5000, 500),
        (10, 50, 13_996, 5000, 100),
        (10, 100, 12_406, 5000, 50),
        (100, 10, 19_573, 500, 50),
        (100, 50, 12_608, 500, 10),
        (100, 100, 10_847, 500, 5),
    ],
)
def test_cifar_totals_of_the_paper(classes: int, imbalance: int, total: int, most: int, fewest: int) -> None:
    count_C = profile(most, imbalance, classes)
    assert (count_C.sum(), count_C[0], count_C[-1]) == (total, most, fewest)


def test_fashion_mnist_profile() -> None:
    assert profile(1000, 100, 10).tolist() == [1000, 599, 359, 215, 129, 77, 46, 27, 16, 10]


@few
@given(most=st.integers(1, 5000), imbalance=st.integers(1, 1000), classes=st.integers(2, 120))
def test_profile_is_the_formula_in_whole_numbers(most: int, imbalance: int, classes: int) -> None:
    """n_k is the largest n with n^(C-1) gamma^k <= n_max^(C-1), which needs no rounding."""
    if imbalance > most:
        with pytest.raises(InputError):
            profile(most, imbalance, classes)
        return
    for k, n in enumerate(profile(most, imbalance, classes).tolist()):
        assert n ** (classes - 1) * imbalance**k <= most ** (classes - 1)
        assert (n + 1) ** (classes - 1) * imbalance**k > most ** (classes - 1)


def test_profile_keeps_whole_numbers_that_floats_miss() -> None:
    """Where gamma^(-k / (C - 1)) is rational, every n_k is exact."""
    assert profile(1000, 1000, 4).tolist() == [1000, 100, 10, 1]
    assert profile(729, 729, 7).tolist() == [729, 243, 81, 27, 9, 3, 1]
    assert profile(4096, 4096, 13).tolist() == [2 ** (12 - k) for k in range(13)]


def test_profile_without_images_in_the_tail_names_a_fix_that_works() -> None:
    with pytest.raises(InputError, match=r"class 9 .*data\.imbalance.*data\.max_per_class") as error:
        profile(50, 100, 10)
    fix = re.search(r"lower data\.imbalance to (\d+)", str(error.value))
    assert fix is not None
    assert profile(50, int(fix[1]), 10)[-1] == 1


def ldam_drw(label_N: Index, counts: list[int], seed: int) -> list[int]:
    """The published procedure, on NumPy's global generator."""
    kept: list[int] = []
    np.random.seed(seed)
    for k, n in enumerate(counts):
        members = np.where(label_N == k)[0]
        np.random.shuffle(members)
        kept.extend(members[:n].tolist())
    return kept


@few
@given(label_N=labels, seed=st.integers(0, 2**32 - 1), data=st.data())
def test_subset_is_the_one_ldam_drw_draws(label_N: Index, seed: int, data: st.DataObject) -> None:
    have = Counter(label_N.tolist())
    counts = [data.draw(st.integers(0, have[k])) for k in range(max(have) + 1)]
    kept = subset(label_N, np.array(counts), seed)
    assert kept.tolist() == ldam_drw(label_N, counts, seed)
    assert Counter(label_N[kept].tolist()) == Counter({k: n for k, n in enumerate(counts) if n})
    assert len(set(kept.tolist())) == len(kept)


def test_subset_of_a_balanced_set_has_the_profile_and_leaves_the_global_generator_alone() -> None:
    label_N = shuffled_labels(classes=10, per_class=500)
    before = label_N.copy()
    count_C = profile(500, 100, 10)
    np.random.seed(123)
    kept = subset(label_N, count_C, seed=0)
    assert np.random.random() == np.random.RandomState(123).random()
    assert np.bincount(label_N[kept]).tolist() == count_C.tolist()
    assert kept.tolist() == ldam_drw(label_N, count_C.tolist(), seed=0)
    assert kept.tolist() != subset(label_N, count_C, seed=1).tolist()
    assert (label_N == before).all()


@pytest.mark.parametrize(
    ("counts", "message"),
    [([3, 4, 2], "class 1 has 3 images, 4 were asked for"), ([3, 3, 3, 1], "class 3 has 0 images, 1 were")],
)
def test_subset_larger_than_the_class_names_the_fix(counts: list[int], message: str) -> None:
    with pytest.raises(InputError, match=rf"{message}.*lower data\.max_per_class or data\.val_per_class"):
        subset(shuffled_labels(classes=3, per_class=3), np.array(counts), seed=0)


@few
@given(label_N=labels, per_class=st.integers(0, 15))
def test_hold_out_takes_the_last_images_of_each_class(label_N: Index, per_class: int) -> None:
    taken: Counter[int] = Counter()
    held: list[int] = []
    for place in reversed(range(len(label_N))):
        label = int(label_N[place])
        if taken[label] < per_class:
            taken[label] += 1
            held.insert(0, place)
    rest, held_N = hold_out(label_N, per_class)
    assert held_N.tolist() == held
    assert rest.tolist() == [place for place in range(len(label_N)) if place not in held]
