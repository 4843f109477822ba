"""Patches that a network cannot take are refused before the training begins."""

import pytest
from baseline_options import baseline_options
from small_training import ALONE

from hidiff import UserError
from hidiff.engine.trainer import Trainer
from hidiff.options import parse_options

PHASES = {"gt_sizes": [16, 24], "gt_size": 32, "mini_batch_sizes": [1, 1], "iters": [1, 1]}


@pytest.mark.parametrize(
    ("network", "patches", "message"),
    [
        ({"depth": 5}, {"gt_size": 24}, r"^datasets\.train\.gt_size: 24, .*HINet.*16, not 24×24"),
        ({"depth": 5}, {"gt_size": 16}, r"^datasets\.train\.gt_size: 16, .*HINet.*32 pixels"),
        (
            {"depth": 5, "hin_position_right": 0},
            PHASES,
            r"^datasets\.train\.gt_sizes: 24, .*HINet.*16, not 24×24",
        ),
    ],
    ids=["no multiple", "too small", "of the second phase"],
)
def test_patch_sizes_are_those_that_the_network_takes(
    data, tmp_path, monkeypatch, network, patches, message
):
    monkeypatch.chdir(tmp_path)
    options = baseline_options(data, "HINet")
    options["network_g"] |= network
    train = options["datasets"]["train"]
    options["datasets"]["train"] = {k: v for k, v in train.items() if k not in PHASES} | patches
    with pytest.raises(UserError, match=message):
        Trainer(parse_options(options), ALONE, dry=True)
