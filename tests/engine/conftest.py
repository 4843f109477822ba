"""Data and trainings that the tests of a module share."""

import pytest
from small_data import make_pairs, train_options
from small_training import ALONE, parameters, train

from hidiff.engine.trainer import Trainer
from hidiff.options import parse_options


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_pairs(folder / "train", 3)
    # Sides that are no multiples of 8.
    make_pairs(folder / "test", 2, height=37, width=43)
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A folder in which both stages were trained."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(train_options(data, 1))
        before = parameters(stage2 := Trainer(parse_options(train_options(data, 2)), ALONE))
        stage2.run()
        return folder, before, parameters(stage2)
