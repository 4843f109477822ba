"""The worked example of CONTRIBUTING.md runs as it stands there."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from small_data import train_options

from hidiff import UserError, build_model
from hidiff.options import parse_options
from hidiff.registry import LOSSES

TEXT = (Path(__file__).resolve().parent.parent / "CONTRIBUTING.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def example():
    """What the example's file and test define, registered for as long as the test runs."""
    code, test = blocks("python")
    names = {"torch": torch, "pytest": pytest, "__name__": "example"}
    LOSSES.check({"type": "L1Loss"}, "loss")  # the room's own entries first
    before = dict(LOSSES._entries)
    exec(compile(code, "frequency.py", "exec"), names)
    exec(compile(test, "test_frequency.py", "exec"), names)
    yield names
    LOSSES._entries.clear()
    LOSSES._entries.update(before)


def test_the_examples_own_test_passes(example):
    tests = [entry for name, entry in example.items() if name.startswith("test_")]
    assert len(tests) == 1
    tests[0]()


def test_the_option_file_trains_with_it(example, tmp_path):
    options = train_options(tmp_path, 1)
    (section,) = map(yaml.safe_load, blocks("yaml"))
    options["train"] |= section["train"]
    model = build_model(parse_options(options).sections)
    lq, gt = torch.rand(2, 1, 3, 16, 16)
    losses = model(lq, gt)
    losses["l_pix"].backward()
    assert isinstance(model.losses["l_pix"], example["SpectrumLoss"])
    options["train"]["pixel_opt"]["loss_weight"] = -1
    with pytest.raises(UserError, match=r"train\.pixel_opt\.loss_weight"):
        build_model(parse_options(options).sections)
