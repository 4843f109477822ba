"""The time that is left, and the figures of a log line, with a clock of the test's own."""

import re

import pytest
import torch

from hidiff.data import BatchPlan
from hidiff.engine.speed import WARM_UP, Speed, duration, training_macs
from hidiff.options import Phase

RELEASED = [
    Phase(*values)
    for values in [
        (128, 16, 92000), (160, 10, 64000), (192, 8, 48000), (256, 4, 36000), (320, 2, 36000),
        (384, 2, 24000),
    ]
]  # fmt: skip
"""The six phases of options/train/GoPro_S1.yml."""

EFFICIENCY = (1.0, 1.02, 1.04, 1.0, 0.96, 1.0)
"""Small batches use a GPU a little less well, large patches a little better."""


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def run(steps, seconds, *, between=lambda step: 0.0, waits=0.0, first=1):
    """A `Speed` after these steps of the released training, and its clock."""
    clock = Clock()
    plan, waited = BatchPlan(RELEASED, 4), [0.0]
    speed = Speed(plan, 300000, clock)
    for step in range(first, first + steps):
        with speed.step(step, lambda: waited[0]):
            clock.now += seconds(plan.phase_index(step))
            waited[0] += waits
        clock.now += between(step)
    return speed, clock


def seconds_of(phase):
    part = RELEASED[phase]
    return 1.1 * part.batch_size * part.patch_size**2 / (16 * 128**2) * EFFICIENCY[phase]


def truth(step):
    ends = [sum(p.iters for p in RELEASED[: i + 1]) for i in range(6)]
    starts = [0, *ends]
    return sum(
        max(end - max(start, step), 0) * seconds_of(i)
        for i, (start, end) in enumerate(zip(starts, ends, strict=False))
    )


@pytest.mark.parametrize("phase", range(6))
def test_the_time_left_is_right_a_minute_after_a_phase_began(phase):
    """As after a resume at the phase's first step: nothing else was measured."""
    begin = sum(part.iters for part in RELEASED[:phase])
    steps = round(60 / seconds_of(phase))
    speed, _ = run(steps, seconds_of, first=begin + 1)
    assert speed.seconds_left(begin + steps) == pytest.approx(truth(begin + steps), rel=0.1)


def test_phases_that_ran_keep_their_speed():
    speed, _ = run(92000 + 10, seconds_of)
    assert speed.seconds(0) == pytest.approx(seconds_of(0))
    assert speed.seconds(1) == pytest.approx(seconds_of(1))


def test_the_first_steps_do_not_count():
    """Each phase begins with slow steps."""
    times = iter([50.0] * WARM_UP + [1.0] * 10)
    speed, _ = run(1, lambda phase: next(times))
    assert speed.seconds(0) == 50  # better than nothing
    times = iter([50.0] * WARM_UP + [1.0] * 10)
    speed, _ = run(WARM_UP + 10, lambda phase: next(times))
    assert speed.seconds(0) == pytest.approx(1)


def test_validations_and_checkpoints_count_in_the_time_left():
    speed, clock = run(8001, lambda phase: 1.0, between=lambda step: 400.0 * (step % 4000 == 0))
    assert clock.now == 8801
    pixels = [part.batch_size * part.patch_size**2 for part in RELEASED]
    steps = sum(part.iters * p / pixels[0] for part, p in zip(RELEASED, pixels, strict=True))
    expected = (steps - 8001) + 0.1 * (300000 - 8001)
    assert speed.seconds_left(8001) == pytest.approx(expected, rel=1e-3)
    assert speed.seconds_left(300000) == 0


def test_what_is_done_aside_does_not_count_in_the_time_left():
    speed, clock = run(10, lambda phase: 1.0)
    with speed.aside():
        clock.now += 500
    with speed.step(11, lambda: 0.0):
        clock.now += 1
    expected, _ = run(11, lambda phase: 1.0)
    assert speed.seconds_left(11) == expected.seconds_left(11)


def test_figures_are_those_since_the_last_line():
    speed, clock = run(10, lambda phase: 0.5, waits=0.1)
    figures = speed.since_last()
    assert figures["steps_per_second"] == pytest.approx(2)
    assert figures["waiting"] == pytest.approx(0.2)
    assert figures["pixels_per_second"] == pytest.approx(2 * 16 * 128**2)
    with speed.step(11, lambda: 0.0):
        clock.now += 4
    assert speed.since_last()["steps_per_second"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"), (8, "8 s"), (200, "3 min 20 s"), (7500.2, "2 h 5 min"),
        (3 * 86400 + 4 * 3600 + 59, "3 d 4 h"), (59.7, "1 min 0 s"),
    ],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text
    assert re.fullmatch(r"(\d+ \w+ )?\d+ \w+", text)


class OfKnownWork(torch.nn.Module):
    """A trained grouped convolution and a frozen linear layer."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.linear = torch.nn.Linear(6, 5).requires_grad_(False)

    def draw(self, count, generator):
        return {"noise": torch.zeros(count)}

    def forward(self, lq, gt, *, noise):
        return {"l_pix": self.linear(self.conv(torch.cat([lq, gt], 1)).mean((2, 3))).sum()}


def test_the_work_of_a_step():
    macs = training_macs(OfKnownWork(), *torch.rand(2, 3, 2, 8, 7))
    # 3 images of 8·7 pixels: 6 outputs of 2·9 products, three times; the frozen layer once.
    assert macs == 3 * (8 * 7 * 6 * 2 * 9 * 3 + 6 * 5)


def test_counting_the_work_compiles_nothing():
    model = OfKnownWork()
    compiled = []
    model.compile(backend=lambda graph, inputs: compiled.append(graph) or graph.forward)
    model(*torch.rand(2, 3, 2, 8, 7), noise=None)
    expected = training_macs(OfKnownWork(), *torch.rand(2, 1, 2, 4, 4))
    assert training_macs(model, *torch.rand(2, 1, 2, 4, 4)) == expected
    assert len(compiled) == 1
