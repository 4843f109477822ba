"""The weights that a training or test starts from."""

import copy
import re
import shutil
from pathlib import Path

import pytest
import torch
from small_data import test_options, train_options, write_yaml
from small_models import make_experiment, make_released, random_model
from small_training import ALONE, parameters, train

from hidiff import UserError
from hidiff.engine.trainer import Trainer
from hidiff.models import build_model
from hidiff.options import load_options, parse_options
from hidiff.weights.experiment import Experiment
from hidiff.weights.export import pack
from hidiff.weights.find import find_model
from hidiff.weights.start import changed_since_start, load_pretrained

SECTIONS = {stage: parse_options(train_options(Path("data"), stage)).sections for stage in (1, 2)}


def start(options, training=True):
    """The model of some options with its weights, and what `load_pretrained` says."""
    options = parse_options(copy.deepcopy(options))
    model = build_model(options.sections, training=training)
    return model, *load_pretrained(model, options, training=training)


def has(network, other):
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in network.state_dict().items())


@pytest.fixture
def stage1(tmp_path, monkeypatch):
    """The model of a stage 1 whose training is complete, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return make_experiment(Path("experiments/tiny_S1"), SECTIONS[1], step=8, total_iter=8)


def test_stage_two_starts_from_stage_one_and_keeps_its_encoder(trained, monkeypatch):
    folder, before, after = trained
    monkeypatch.chdir(folder)
    stage1 = find_model("tiny_S1").model.networks()
    for name in ("net_g", "net_le"):
        for key, tensor in stage1[name].state_dict().items():
            assert torch.equal(before[f"{name}.{key}"], tensor)
            if name == "net_le":
                assert torch.equal(after[f"{name}.{key}"], tensor)
    for name in ("net_g", "net_le_dm", "net_d"):
        assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith(name))


def test_stage_two_without_stage_one_says_what_to_do(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_yaml(tmp_path / "T_S1.yml", train_options(data, 1))
    path = write_yaml(tmp_path / "T_S2.yml", train_options(data, 2))
    with pytest.raises(UserError, match=r"path\.stage1: tiny_S1: .*T_S1"):
        Trainer(load_options(path), ALONE)
    assert not Experiment("tiny_S2").folder.exists()


@pytest.mark.parametrize("named", ["300000", "8", "latest"])
def test_the_releases_paths_mean_what_stage_one_writes(stage1, named):
    """Another folder, and without step 300000, which the release's own stage 1 never reaches."""
    Path("experiments/tiny_S1").rename("experiments/train_x_S1")
    options = train_options(Path("data"), 2)
    options["path"] = {
        f"pretrain_network_{n}": f"experiments/debug_train_x_S1/models/net_{n}_{named}.pth"
        for n in ("g", "le")
    }
    model, notices, origins = start(options)
    assert has(model.net_g, stage1.net_g) and has(model.net_le, stage1.net_le)
    assert sum("tiny_S1_8.safetensors is taken" in notice for notice in notices) == 2
    assert origins["net_le"]["step"] == 8


@pytest.mark.parametrize(
    "place",
    [
        *("tiny_S1", "tiny_S1@8", "experiments/tiny_S1", "experiments/tiny_S1/models"),
        "experiments/tiny_S1/models/tiny_S1_8.safetensors",
    ],
)
def test_stage_1_is_named_by_one_option(stage1, place):
    options = {**train_options(Path("data"), 2), "name": "other", "path": {"stage1": place}}
    model, _, origins = start(options)
    assert has(model.net_g, stage1.net_g)
    file = "experiments/tiny_S1/models/tiny_S1_8.safetensors"
    assert {name: origin["file"] for name, origin in origins.items()} == {
        "net_g": file,
        "net_le": file,
    }


def test_a_second_try_of_stage_two_finds_stage_one(stage1):
    model, notices, _ = start({**train_options(Path("data"), 2), "name": "tiny_S2_b"})
    assert has(model.net_g, stage1.net_g)
    assert any("tiny_S1_8.safetensors, saved after step 8" in notice for notice in notices)


def test_half_a_stage_1_is_refused_unless_allowed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_experiment(Path("experiments/tiny_S1"), SECTIONS[1], step=8, total_iter=9)
    options = train_options(Path("data"), 2)
    with pytest.raises(UserError, match=r"^path\.stage1: .*step 8 of 9"):
        start(options)
    named = {"pretrain_network_g": "experiments/tiny_S1/models/net_g_8.pth"}
    with pytest.raises(UserError, match=r"^path\.pretrain_network_g: .*step 8 of 9"):
        start({**options, "path": named})
    options["path"] = {"allow_incomplete_stage1": True}
    origins = start(options)[2]
    assert origins["net_g"]["step"] == 8
    assert changed_since_start(origins) == []
    make_experiment(Path("experiments/tiny_S1"), {**SECTIONS[1], "val": {}}, step=8)
    assert re.search("net_g: .*tiny_S1_8", changed_since_start(origins)[0])


def test_the_average_of_stage_1_is_taken_where_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = make_experiment(Path("experiments/tiny_S1"), SECTIONS[1], total_iter=8, averaged=True)
    average = find_model("tiny_S1").model
    options = train_options(Path("data"), 2)
    for key, expected in (("params", raw), ("params_ema", average)):
        model = start({**options, "path": {"param_key_g": key}})[0]
        assert has(model.net_g, expected.net_g) and not has(model.net_le, average.net_le)


def test_a_test_takes_a_model_by_whatever_names_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HIDIFF_HOME", str(tmp_path / "home"))
    first = make_experiment(Path("experiments/mine"), SECTIONS[2], step=4)
    make_experiment(Path("experiments/mine"), SECTIONS[2], step=8)
    pack(find_model("mine@4"), Path("home/models/gopro.safetensors"))
    make_released(Path("released"), SECTIONS[2])
    options = test_options(Path("data"))
    places = {
        "mine@4": {"weights": "mine@4"},
        "packed": {"weights": "home/models/gopro.safetensors"},
        "download": {"weights": "gopro"},
        "release": {
            f"pretrain_network_{n}": f"experiments/mine/models/net_{n}_4.pth"
            for n in ("g", "le_dm", "d")
        },
    }
    for name, path in places.items():
        model, _, origins = start({**options, "path": path}, training=False)
        assert all(has(net, first.networks()[key]) for key, net in model.networks().items()), name
        assert {origin["step"] for origin in origins.values()} == {4}
    released = {f"pretrain_network_{n}": f"released/net_{n}.pth" for n in ("g", "le_dm", "d")}
    model = start({**options, "path": released}, training=False)[0]
    assert has(model.net_d, random_model(SECTIONS[2], seed=1).net_d)


def test_weights_that_are_missing_or_of_another_kind_are_named(stage1):
    options = test_options(Path("data"))
    for path, words in (
        ({"weights": "tiny_S1"}, r"^path\.weights: .*net_g, net_le and no net_le_dm.*HI_Diff_S2"),
        ({"weights": "tiny_S2"}, r"^path\.weights: tiny_S2: .*tiny_S1"),
        ({}, r"^path\.pretrain_network_g: .*--weights"),
        ({"pretrain_network_g": "nowhere.pth"}, r"^path\.pretrain_network_g: nowhere\.pth"),
    ):
        with pytest.raises(UserError, match=words):
            start({**options, "path": path}, training=False)


def test_loose_loading_says_how_much_fits_and_never_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = random_model(SECTIONS[1])
    content = model.net_g.state_dict()
    options = train_options(Path("data"), 1)
    options["path"] = {"pretrain_network_g": "w.pth", "strict_load_g": False}
    torch.save({f"net.{key}": value for key, value in content.items()}, "w.pth")
    with pytest.raises(UserError, match=r"w\.pth.* 0 of \d+ parameters"):
        start(options)
    del content["output.weight"]
    torch.save(content, "w.pth")
    loaded, notices, _ = start(options)
    total = len(model.net_g.state_dict())
    assert any(f"{total - 1} of {total} parameters" in notice for notice in notices)
    assert torch.equal(loaded.net_g.patch_embed.proj.weight, content["patch_embed.proj.weight"])
    test = test_options(Path("data")) | {"path": {**options["path"], "weights": None}}
    with pytest.raises(UserError, match=r"output\.weight"):
        start(test, training=False)


def test_training_goes_on_from_a_model_file(trained, data, tmp_path, monkeypatch):
    monkeypatch.chdir(trained[0])
    pack(find_model("tiny_S2"), tmp_path / "plain.safetensors")
    pack(find_model("tiny_S2"), tmp_path / "whole.safetensors", for_training=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"plain\.safetensors: .*net_le.*--for-training"):
        find_model("plain.safetensors", training=True)
    expected = find_model("whole.safetensors", training=True).model
    options = train_options(data, 2) | {"path": {"weights": "whole.safetensors"}, "name": "on"}
    before = parameters(trainer := Trainer(parse_options(options), ALONE))
    for key, value in before.items():
        network, _, entry = key.partition(".")
        assert torch.equal(value, expected.networks()[network].state_dict()[entry])
    trainer.run()
    changed = {
        key for key, value in parameters(trainer).items() if not torch.equal(value, before[key])
    }
    assert {key.partition(".")[0] for key in changed} == {"net_g", "net_le_dm", "net_d"}
    options["path"]["weights"] = "plain.safetensors"
    with pytest.raises(UserError, match=r"^path\.weights: plain\.safetensors .*no net_le"):
        Trainer(parse_options({**options, "name": "other"}), ALONE)


def test_what_stage_2_did_not_train_lies_in_its_file(data, tmp_path, monkeypatch):
    """Split-Training keeps stage 1's Transformer."""
    monkeypatch.chdir(tmp_path)
    make_experiment(Path("experiments/tiny_S1"), SECTIONS[1], step=8, total_iter=8)
    options = {**train_options(data, 2, total_iter=1), "name": "split_S2"}
    trainer = train({**options, "model_type": "HI_Diff_S2_Split", "path": {"stage1": "tiny_S1"}})
    shutil.move("experiments/split_S2", "moved")
    shutil.rmtree("experiments/tiny_S1")
    assert has(find_model("moved").model.net_g, trainer.model.net_g)
