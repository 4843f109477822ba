"""The small networks that an ablation compares: their sizes, and their one budget."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from hidiff.models import build_model
from hidiff.report.ablation import plan

SMALL = Path(__file__).resolve().parent.parent.parent / "options/baselines/small"


@pytest.fixture(scope="module")
def runs():
    return plan(sorted(SMALL.glob("*.yml")), [7])


def test_they_are_nine_of_about_a_million_parameters(runs):
    tested = [run for run in runs if run.results]
    assert len(tested) == 9
    for run in tested:
        with torch.device("meta"):
            networks = build_model(run.options.sections).trained_networks().values()
        assert 0.9e6 < sum(p.numel() for net in networks for p in net.parameters()) < 1.1e6


def test_all_have_one_budget(runs):
    steps: Counter[str] = Counter()
    settings = []
    for run in runs:
        train, data = run.options.for_training()
        label = run.file.stem
        steps[label.rpartition("_S")[0] or label] += train.total_iter
        settings.append((data, train.optim_total, train.scheduler, train.pixel_opt))
    assert len(steps) == 9
    assert len(set(steps.values())) == 1
    assert all(setting == settings[0] for setting in settings)
