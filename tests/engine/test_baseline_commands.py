"""Every network that HI-Diff is compared with, by the commands of HI-Diff."""

from pathlib import Path

import numpy as np
import pytest
import torch
from baseline_options import BASELINES, baseline_options
from PIL import Image
from small_data import picture
from small_training import ALONE, parameters, train

from hidiff import UserError
from hidiff.cli import call
from hidiff.data.dataset import to_tensor
from hidiff.data.image import read_image
from hidiff.engine.trainer import Trainer
from hidiff.evaluation.record import read_scores
from hidiff.evaluation.test_run import run_test
from hidiff.options import parse_options
from hidiff.restore.image import restore_image, to_image
from hidiff.weights.find import load_model

RESTORING = [name for name in BASELINES if name != "DiffIRS1"]


@pytest.fixture(scope="module")
def baselines(data, tmp_path_factory):
    """A folder in which all of them are trained, and their weights."""
    folder = tmp_path_factory.mktemp("baselines")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, {name: parameters(train(baseline_options(data, name))) for name in BASELINES}


@pytest.fixture(autouse=True)
def _there(baselines, monkeypatch):
    monkeypatch.chdir(baselines[0])


@pytest.mark.parametrize("name", BASELINES)
def test_training_resumes_bit_for_bit(baselines, data, name):
    options = {**baseline_options(data, name), "name": f"resumed_{name}"}
    first = Trainer(parse_options(options), ALONE)
    before = parameters(first)
    first.total_iter = 1
    first.run()
    resumed = train(options, auto_resume=True)
    after = parameters(resumed)
    for key, tensor in baselines[1][name].items():
        assert torch.equal(tensor, after[key]), key
    frozen = {key for key in before if name == "DiffIRS2" and key.startswith("net_le.")}
    assert any(not torch.equal(before[key], after[key]) for key in before.keys() - frozen)
    assert all(torch.equal(before[key], after[key]) for key in frozen)
    # The data-parallel wrapper waits for the gradient of every parameter that is trained.
    stepped = resumed.state.optimizer.state
    assert all(p in stepped for p in resumed.model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", RESTORING)
def test_testing_packing_and_restoring_give_one_result(baselines, data, name, tmp_path):
    options = baseline_options(data, name)
    options["path"] = {"weights": options["name"]}
    assert run_test(parse_options(options), ALONE)
    (scores,) = read_scores(Path("results") / options["name"])
    assert len(scores.images) >= 2

    file = tmp_path / "packed.safetensors"
    assert call("pack", options["name"], "-o", str(file)) == 0
    Image.fromarray(picture(5, 21, 30)).save(tmp_path / "photo.png")
    arguments = [str(tmp_path / "photo.png"), "-o", str(tmp_path / "out"), "-m", str(file)]
    assert call("restore", *arguments, "--device", "cpu") == 0
    model = load_model(options["name"]).model
    image = to_tensor(picture(5, 21, 30))
    expected = to_image(restore_image(model, image, name="photo"))
    assert np.array_equal(read_image(tmp_path / "out/photo.png"), expected)


def test_stage_1_of_diffir_restores_no_photographs(baselines, tmp_path):
    with pytest.raises(UserError, match="stage 1"):
        load_model("tiny_DiffIRS1")


def test_stage_2_of_diffir_begins_where_stage_1_ended(baselines, data):
    options = {**baseline_options(data, "DiffIRS2"), "name": "begun"}
    begun = parameters(Trainer(parse_options(options), ALONE, dry=True))
    ended = baselines[1]["DiffIRS1"]
    assert len(ended) > 50
    for key, value in ended.items():
        assert torch.equal(begun[key], value), key
