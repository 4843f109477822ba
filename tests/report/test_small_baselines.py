"""The small networks that `hidiff ablation` compares: their sizes, and their one budget."""

from collections import Counter
from pathlib import Path

import pytest

from hidiff.report.ablation import plan
from hidiff.report.ablation_changes import Changes

SMALL = Path(__file__).resolve().parent.parent.parent / "options/baselines/small"


@pytest.fixture(scope="module")
def runs():
    return plan(sorted(SMALL.glob("*.yml")), [7], Changes())


def test_they_are_nine_of_about_a_million_parameters(runs):
    tested = [run for run in runs if run.tested]
    assert len(tested) == 9
    for run in tested:
        networks = run.model.trained_networks().values()
        assert 0.9e6 < sum(p.numel() for net in networks for p in net.parameters()) < 1.1e6


def test_all_have_one_budget(runs):
    steps: Counter[str] = Counter()
    settings = []
    for run in runs:
        train, data = run.options.for_training()
        steps[run.label.rpartition("_S")[0] or run.label] += train.total_iter
        settings.append((data, train.optim_total, train.scheduler, train.pixel_opt))
    assert len(steps) == 9
    assert len(set(steps.values())) == 1
    assert all(setting == settings[0] for setting in settings)
