"""The order of crops: phases, processes, epochs."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hidiff import UserError
from hidiff.data import BatchPlan, PhaseBatchSampler
from hidiff.data.sampler import Shares
from hidiff.options import Phase
from hidiff.utils.random import rng

RELEASED = tuple(
    Phase(*values)
    for values in zip(
        [128, 160, 192, 256, 320, 384],
        [16, 10, 8, 4, 2, 2],
        [20000] * 5 + [200000],
        strict=True,
    )
)
SMALL = (Phase(16, 4, 3), Phase(32, 2, 2))


def sampler(world_size=1, rank=0, reference=None, first_step=1, size=7, total_iter=8, **kwargs):
    plan = BatchPlan(SMALL, world_size, reference)
    return PhaseBatchSampler(
        size=size,
        plan=plan,
        rank=rank,
        seed=5,
        crop_size=32,
        total_iter=total_iter,
        first_step=first_step,
        **kwargs,
    )


@pytest.mark.parametrize(
    ("step", "patch_size"),
    [(1, 128), (20000, 128), (20001, 160), (40000, 160), (40001, 192), (100000, 320),
     (100001, 384), (300000, 384), (300001, 384)],
)  # fmt: skip
def test_phase_of_a_step_of_the_released_schedule(step, patch_size):
    assert BatchPlan(RELEASED, 4).phase(step).patch_size == patch_size


def test_phases_of_the_shipped_schedule_are_the_released_numbers():
    golden = Path(__file__).parent.parent / "golden" / "released_options.json"
    train = json.loads(golden.read_text())["train/GoPro_S1.yml"]["options"]["datasets"]["train"]
    lists = zip(train["gt_sizes"], train["mini_batch_sizes"], train["iters"], strict=True)
    assert tuple(Phase(*values) for values in lists) == RELEASED


def test_samples_before_a_step_count_every_batch():
    plan = BatchPlan(SMALL, 2, 4)
    batches = [4, 4, 4, 2, 2, 2, 2]
    for step in range(1, 8):
        assert plan.samples_before(step) == 4 * sum(batches[: step - 1])


def test_batch_and_patch_sizes_follow_the_phases():
    shapes = [(len(batch), batch[0].patch_size) for batch in sampler()]
    assert shapes == [(4, 16)] * 3 + [(2, 32)] * 5


def test_every_epoch_shows_every_pair_once():
    requests = [request for batch in sampler(size=5, total_iter=4) for request in batch]
    assert len(requests) == 14
    assert sorted(r.index for r in requests[:5]) == [0, 1, 2, 3, 4]
    assert sorted(r.index for r in requests[5:10]) == [0, 1, 2, 3, 4]
    assert len({r.seed for r in requests}) == 14


def test_enlarging_shows_every_pair_that_many_times_an_epoch():
    requests = [r for b in sampler(size=5, total_iter=3, enlarge_ratio=2) for r in b]
    assert Counter(r.index for r in requests[:10]) == dict.fromkeys(range(5), 2)


def test_the_order_is_that_of_shuffled_epochs():
    streams = [rng(5, "order", 0, epoch) for epoch in range(3)]
    expected = [int(i) % 7 for r in streams for i in r.permutation(14)]
    requests = [r for b in sampler(total_iter=12, enlarge_ratio=2) for r in b]
    assert [r.index for r in requests] == expected[: len(requests)]
    assert [r.seed for r in requests] == [(5, "patch", p) for p in range(len(requests))]


MIXED = Shares([2, 0.5, 1], [4, 3, 5])


@pytest.mark.parametrize("weights", [[1], [1, 1], [2, 0.5, 1], [0.1, 0.2, 0.7], [1e-7, 3, 1e-3, 5]])
def test_every_set_has_its_share_of_the_samples_so_far(weights):
    shares = Shares(weights, [9] * len(weights))
    seen = [0] * len(weights)
    for position in range(300):
        assert shares.counts(position) == seen
        part, number = shares.locate(position)
        assert number == seen[part]
        seen[part] += 1
        for count, weight in zip(seen, weights, strict=True):
            assert abs(count - (position + 1) * weight / sum(weights)) <= 1
    late = shares.counts(10**12)
    assert sum(late) == 10**12
    np.testing.assert_allclose(late, 1e12 * np.array(weights) / sum(weights), rtol=0, atol=1.5)


def test_every_set_of_a_mixture_goes_through_epochs_of_its_own():
    requests = [r for b in sampler(shares=MIXED, total_iter=300) for r in b]
    for part, (start, size) in enumerate(((0, 4), (4, 3), (7, 5))):
        own = [r.index - start for r in requests if start <= r.index < start + size]
        epochs = [own[i : i + size] for i in range(0, len(own) - size, size)]
        assert len(epochs) > 20
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs), part
        assert len({tuple(epoch) for epoch in epochs}) > 4, "shuffled anew"
    first = [r.index for r in requests if r.index < 4]
    alone = [r.index for b in sampler(size=4, total_iter=300) for r in b]
    assert first == alone[: len(first)]


@pytest.mark.parametrize("shares", [None, MIXED])
def test_two_processes_share_what_one_reads(shares):
    """Rank r takes slot r of each step; one process that accumulates takes both in turn."""
    alone = list(sampler(reference=2, shares=shares))
    ranks = [list(sampler(world_size=2, rank=rank, shares=shares)) for rank in range(2)]
    assert alone[0::2] == ranks[0]
    assert alone[1::2] == ranks[1]


@pytest.mark.parametrize("shares", [None, MIXED])
def test_resuming_goes_on_where_the_order_was(shares):
    for world, reference in ((1, None), (1, 2), (2, None)):
        whole = list(sampler(world_size=world, reference=reference, shares=shares))
        accumulation = (reference or world) // world
        rest = list(sampler(world_size=world, reference=reference, first_step=4, shares=shares))
        assert rest == whole[3 * accumulation :]


def test_a_reference_that_cannot_be_kept_shows_the_arithmetic():
    with pytest.raises(UserError, match=r"4 processes × .* 64, 40, 32, 16, 8, 8, which 3"):
        BatchPlan(RELEASED, 3, 4)
