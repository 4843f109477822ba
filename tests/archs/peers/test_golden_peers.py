"""The peer networks against the published parameter names, outputs, gradients and figures."""

from functools import cache

import pytest
import torch
from golden_values import fill, gradient_norms, image, load_arrays, load_json, relative_error

from hidiff import build_network
from hidiff.archs import Peer
from hidiff.cost.macs import count_macs
from hidiff.registry import ARCHS

MANIFEST = load_json("peers/manifest.json")


def is_peer(entry):
    return entry["type"] in ARCHS and issubclass(ARCHS.get(entry["type"], ""), Peer)


NETWORKS = {name: entry for name, entry in MANIFEST["networks"].items() if is_peer(entry)}
CASES = {
    f"{c['type']}-{c['case']}": c
    for c in MANIFEST["cases"]
    if is_peer(c) and c["type"] != "DiffIRS2"  # which draws noise: test_golden_diffir.py
}


def build(entry):
    return build_network({"type": entry["type"], **entry["options"]})


@cache
def computed(name):
    """The case's network in float64, filled by rule, and its outputs."""
    case = CASES[name]
    network = build(case).double().eval()
    fill(network, case["type"], gain=MANIFEST["fill"]["gain"], but=case["shared"])
    size = case["image"]
    inputs = image(size["seed"], (size["batch"], 3, size["height"], size["width"]))
    with torch.set_grad_enabled("gradients" in case):
        return network, network(inputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_names_shapes_and_figures_are_the_published_ones(name):
    reference = NETWORKS[name]
    with torch.device("meta"):
        network = build(reference).eval()
        macs = count_macs(network, torch.empty(1, 3, 256, 256))
    shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    assert shapes == reference["state_dict"]
    assert sum(p.numel() for p in network.parameters()) == reference["parameters"]
    assert macs == reference["macs_256"]["total"]
    assert network.shift == reference["shift"]


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_the_published_ones(name):
    case, values = CASES[name], load_arrays("peers/outputs.npz")
    network, outputs = computed(name)
    assert len(outputs) == case["n_outputs"]
    for index, out in enumerate(outputs):
        reference = values[f"{case['type']}/{case['case']}/out{index}"]
        assert relative_error(out, reference) < 1e-9
    assert outputs[network.final_output] is outputs[case["final"]]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "gradients" in case])
def test_gradients_are_the_published_ones(name):
    reference = CASES[name]["gradients"]
    network, outputs = computed(name)
    loss = torch.cat([out.flatten() for out in outputs]).square().mean()
    assert loss.item() == pytest.approx(reference["loss"], rel=1e-9)
    assert gradient_norms(network, loss) == pytest.approx(reference["norms"], rel=1e-8)
