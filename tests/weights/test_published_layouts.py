"""Weights of the baseline networks in every layout that files are published in."""

import argparse
import itertools

import pytest
import torch
from golden_values import load_json

from hidiff import UserError, build_network
from hidiff.weights.load import find_model
from hidiff.weights.read import load_network, load_weights
from hidiff.weights.recognise import look_alikes

WHERE = "path.pretrain_network_g"
MANIFEST = load_json("baselines/manifest.json")["networks"]

LAYOUTS = {
    "bare": lambda weights, other: weights,
    "DataParallel": lambda weights, other: {f"module.{k}": v for k, v in weights.items()},
    "params": lambda weights, other: {"params": weights},
    "params_ema": lambda weights, other: {"params_ema": weights},
    "both": lambda weights, other: {"params_ema": other, "params": weights},
    "state_dict": lambda weights, other: {
        "epoch": 3,
        "state_dict": {f"module.{k}": v for k, v in weights.items()},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]},
    },
    "model": lambda weights, other: {"model": weights, "optimizer": {}, "scheduler": {}},
}
RELEASED = {
    **{"MIMOUNetPlus": "model", "MPRNet": "state_dict", "Stripformer": "DataParallel"},
    **{"HINet": "params", "NAFNet": "params", "DiffIRS1": "both", "DiffIRS2": "both"},
}
"""The layout of each network's release; DMPHN's is in parts."""

BLOCKS = {"num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "n_encoder_res": 1}
SMALL = {
    "DMPHN": {"stack": 1},
    "MIMOUNetPlus": {"num_res": 1},
    "MPRNet": {"num_cab": 1},
    "HINet": {"depth": 2},
    "Stripformer": {},
    "NAFNet": {"enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]},
    "DiffIRS1": BLOCKS,
    "DiffIRS2": BLOCKS,
}
"""Options with which networks have few parameters."""


def blank(name, options):
    with torch.device("meta"):
        return build_network({"type": name, **options})


def numbered(shapes, shared=None, start=1.0):
    """Tensors of these shapes, each full of a number, which takes no room however large it is.

    Names of one tensor have the same number.
    """
    numbers = {key: start + index for index, key in enumerate(shapes)}
    numbers |= {key: numbers[first] for key, first in (shared or {}).items()}
    return {key: torch.tensor(numbers[key]).expand(shape) for key, shape in shapes.items()}


def published(name):
    """A network of the manifest, and tensors of the names and shapes there."""
    entry = MANIFEST[name]
    return blank(entry["type"], entry["options"]), numbered(entry["state_dict"], entry["shared"])


def assert_loads(network, path, expected, param_key="params"):
    load_network(network, load_weights(path, WHERE, param_key), assign=True)
    found = network.state_dict()
    assert found.keys() == expected.keys()
    assert all(found[key].flatten()[0] == value.flatten()[0] for key, value in expected.items())


def assert_found(path, network):
    """A model's file says by its names and shapes what it is."""
    found = find_model(path)
    assert isinstance(found.model.net_g, type(network))
    assert found.patch_size >= 256 and found.normalization is None
    ours, theirs = network.state_dict(), found.model.net_g.state_dict()
    assert all(torch.equal(ours[key].flatten()[:1], theirs[key].flatten()[:1]) for key in ours)


@pytest.mark.parametrize("name", [n for n in MANIFEST if not n.startswith("DMPHN")])
def test_released_files_load_strictly(tmp_path, name):
    network, weights = published(name)
    content = LAYOUTS[RELEASED[MANIFEST[name]["type"]]](weights, weights)
    torch.save(content, tmp_path / "weights.pth")
    assert_loads(network, tmp_path / "weights.pth", weights)
    if not name.startswith("DiffIR"):
        assert_found(tmp_path / "weights.pth", network)


@pytest.mark.parametrize("name", SMALL)
def test_every_layout_loads_strictly(tmp_path, name):
    network, path = blank(name, SMALL[name]), tmp_path / "weights.pth"
    parameters = network.state_dict(keep_vars=True)
    shapes = {key: value.shape for key, value in parameters.items()}
    firsts = {id(value): key for key, value in reversed(parameters.items())}
    shared = {key: firsts[id(value)] for key, value in parameters.items()}
    for start, layout in enumerate(LAYOUTS.values()):
        weights = numbered(shapes, shared, float(start))
        torch.save(layout(weights, numbered(shapes, shared, 0.5)), path)
        assert_loads(network, path, weights)
    torch.save(LAYOUTS["both"](numbered(shapes, shared), weights), path)
    assert_loads(network, path, weights, "params_ema")


@pytest.mark.parametrize("name", [name for name in MANIFEST if name.startswith("DMPHN")])
def test_a_network_in_parts_is_read_from_its_folder(tmp_path, name):
    """A file for each encoder and decoder, in the format before torch 1.6."""
    network, weights = published(name)
    parts = {}
    for key, value in weights.items():
        stem, _, inner = key.partition(".")
        parts.setdefault(stem, {})[inner] = value
    for stem, part in parts.items():
        torch.save(part, tmp_path / f"{stem}.pkl", _use_new_zipfile_serialization=False)
    assert_loads(network, tmp_path, weights)
    if name == "DMPHN":
        assert_found(tmp_path, network)
    else:
        with pytest.raises(UserError, match=rf"{tmp_path.name} .*DMPHN.*options/baselines"):
            find_model(tmp_path)
    # A part alone is no other network's, and a missing one is named.
    with pytest.raises(UserError, match=rf"{WHERE}: .*coder_.*missing"):
        load_network(network, load_weights(tmp_path / f"{stem}.pkl", WHERE))
    (tmp_path / f"{stem}.pkl").unlink()
    with pytest.raises(UserError, match=rf"{WHERE}: .*missing \(first: {stem}\."):
        load_network(network, load_weights(tmp_path, WHERE))


@pytest.mark.parametrize("name", MANIFEST)
def test_networks_are_recognised_by_their_names(name):
    alike = look_alikes(MANIFEST[name]["state_dict"])
    local = ["NAFNetLocal"] if name.startswith("NAFNet") else []
    assert alike == [MANIFEST[name]["type"], *local]


@pytest.mark.parametrize(
    "names", [["0.weight", "0.bias"], ["conv1.weight", "layer1.0.bn1.bias"], []]
)
def test_other_weights_are_no_network_of_these(names):
    assert look_alikes(names) == []


def test_weights_of_another_network_are_named(tmp_path):
    networks = {name: blank(name, options) for name, options in SMALL.items()}
    path = tmp_path / "weights.pth"
    for name, other in itertools.pairwise([*networks, next(iter(networks))]):
        shapes = {key: value.shape for key, value in networks[name].state_dict().items()}
        torch.save(numbered(shapes), path)
        with pytest.raises(UserError, match=rf"{WHERE}: .*weights\.pth .*{name}.* {other}:"):
            load_network(networks[other], load_weights(path, WHERE))


def test_weights_of_another_size_say_what_differs(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(published("NAFNet-width32")[1], path)
    weights = load_weights(path, WHERE)
    with pytest.raises(UserError, match=rf"{WHERE}: .*weights\.pth .*configuration.*another shape"):
        load_network(blank("NAFNet", MANIFEST["NAFNet-width64"]["options"]), weights)
    options = MANIFEST["NAFNet-width32"]["options"] | {"dec_blk_nums": [1, 1, 1, 2]}
    with pytest.raises(UserError, match=r"18 parameters are missing \(first: decoders\.3\.1\."):
        load_network(blank("NAFNet", options), weights)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"netG": {"conv.weight": torch.zeros(1)}, "epoch": 3}, r"netG, epoch;.*param_key"),
        ({"params": {}, "epoch": 3}, r"'params' in .*weights\.pth.*param_key"),
        ({"params": [torch.zeros(1)]}, r"'params' in .*weights\.pth.*param_key"),
        ({"params": {"conv.weight": 1.0}}, r"'params' in .*weights\.pth.*param_key"),
        ([torch.zeros(1)], "take another file"),
        (
            {"params": {}, "options": argparse.Namespace()},
            r"argparse\.Namespace.*weights_only=False",
        ),
    ],
    ids=["unknown entries", "nothing", "a list", "a number", "no table", "an object"],
)
def test_a_file_of_another_kind_says_the_way_out(tmp_path, content, named):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=rf"{WHERE}: .*{named}"):
        load_weights(tmp_path / "weights.pth", WHERE)
