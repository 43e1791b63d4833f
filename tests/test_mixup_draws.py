"""What pairs are a function of: the seed and their place; partner images until used up; torch alone.

Letters in the names give shapes: B images of a batch, C classes, D dimensions, N training images, P pairs.
"""

import subprocess
import sys
from typing import Any

import pytest
import torch

from lfm.method.mixup import (
    PairBatch,
)
from tests.mixup_cases import COUNTS, chi_square, make_labels, make_sampler

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_same_batch(a: PairBatch, b: PairBatch) -> None:
    for field in ("index_B2", "lambda_x_B", "label_B2", "weight_B2"):
        assert torch.equal(getattr(a, field), getattr(b, field)), field
    assert torch.equal(a.rng.get_state(), b.rng.get_state())


# --- Partner images until used up ------------------------------------------------------------------------


def test_until_used_up_repeats_an_image_only_after_all_of_its_class() -> None:
    label_N = make_labels(COUNTS)
    rounds_differ = False
    for epoch in range(5):
        batches = list(make_sampler(partner_image="until-used-up").epoch(epoch))
        drawn = torch.cat([batch.index_B2[:, 1] for batch in batches]).tolist()
        for k, n in enumerate(COUNTS):
            of_class = [j for j in drawn if label_N[j] == k]
            rounds = [of_class[start : start + n] for start in range(0, len(of_class), n)]
            assert all(len(set(images)) == len(images) for images in rounds)
            rounds_differ |= n >= 4 and len({tuple(images) for images in rounds if len(images) == n}) > 1
    assert rounds_differ


def test_until_used_up_starts_each_class_anywhere() -> None:
    """The first partner image of a class in an epoch is uniform; the partner classes stay."""
    counts, epochs = [6, 3], 240
    label_N = make_labels(counts)
    ways = ("until-used-up", "uniform")
    sampler, free = (make_sampler(counts, batch_size=9, partner_image=way) for way in ways)
    seen = torch.zeros(9, dtype=torch.long)
    for epoch in range(epochs):
        batch = sampler.batch(epoch, 0)
        assert torch.equal(batch.label_B2, free.batch(epoch, 0).label_B2)
        for k in range(2):
            seen[batch.index_B2[:, 1][batch.label_B2[:, 1] == k][0]] += 1
    observed = [seen[label_N == k].tolist() for k in range(2)]
    assert chi_square(observed, [[epochs / n] * n for n in counts]) > 0.01


# --- Randomness is a function of (seed, stage, epoch, step) ----------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "mixup": {"name": "mixup"},
    "remix-per-batch": {"name": "remix", "lambda_per": "batch"},
    "lfm": {"name": "lfm"},
    "lfm-uniform": {"name": "lfm", "partner": "uniform"},
    "lfm-until-used-up": {"name": "lfm", "partner_image": "until-used-up"},
}


each_variant = pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)


@each_variant
def test_a_batch_depends_on_its_place_alone(values: dict[str, Any]) -> None:
    """Asked directly, in any order or afresh, a sampler gives what iterating gives: resuming is exact."""
    iterated = make_sampler(**values)
    batches = {(epoch, step): b for epoch in range(3) for step, b in enumerate(iterated.epoch(epoch))}
    places = list(batches)
    shared = make_sampler(**values)
    for n in torch.randperm(len(places), generator=torch.Generator().manual_seed(3)).tolist():
        assert_same_batch(shared.batch(*places[n]), batches[places[n]])
    assert_same_batch(make_sampler(**values).batch(2, 5), batches[2, 5])
    resumed = make_sampler(**values).epoch(1, first_step=4)
    for step, batch in enumerate(resumed, start=4):
        assert_same_batch(batch, batches[1, step])


@each_variant
def test_the_global_random_state_is_neither_read_nor_moved(values: dict[str, Any]) -> None:
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        drawn.append(make_sampler(**values).batch(1, 2))
        assert torch.equal(torch.get_rng_state(), before)
    assert_same_batch(*drawn)


def test_seed_stage_epoch_and_step_each_change_the_draw() -> None:
    places = [(0, 1, 0, 0), (1, 1, 0, 0), (0, 2, 0, 0), (0, 1, 1, 0), (0, 1, 0, 1)]
    drawn = {make_sampler(seed=a, stage=b).batch(c, d).lambda_x_B[0].item() for a, b, c, d in places}
    assert len(drawn) == len(places)


# --- What it needs ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_method_runs_on_torch_alone() -> None:
    """Its types come from the configuration, but nothing of that is imported when it runs."""
    program = (
        "import sys, torch\n"
        "before = {name.partition('.')[0] for name in sys.modules}\n"
        "import lfm.method.analysis, lfm.method.losses, lfm.method.mixup\n"
        "added = {name.partition('.')[0] for name in sys.modules} - before - sys.stdlib_module_names\n"
        "print(sorted(added), sorted(name for name in sys.modules if name.startswith('lfm.')))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    ours = ["method", *(f"method.{name}" for name in ("analysis", "draws", "losses", "mixup", "partners"))]
    assert done.stdout.strip() == f"{['lfm']} {[f'lfm.{name}' for name in ours]}"
