"""DiffIR's two stages against published values; stage 2's figures: test_golden_baselines."""

from functools import cache

import numpy as np
import pytest
import torch
from golden_values import (
    fill,
    gradient_norms,
    image,
    load_arrays,
    load_json,
    normal,
    relative_error,
)

from hidiff import build_network
from hidiff.report.macs import count_macs

MANIFEST = load_json("baselines/manifest.json")
CASES = {
    f"{case['type']}-{case['case']}": case
    for case in MANIFEST["cases"]
    if case["type"] in ("DiffIRS1", "DiffIRS2")
}
STAGE2 = [name for name in CASES if name.startswith("DiffIRS2")]


def build(entry):
    return build_network({"type": entry["type"], **entry["options"]})


@cache
def computed(name):
    """The case's network in float64, filled by rule, its input, and outputs by their names."""
    case = CASES[name]
    network = build(case)
    left = [*case["shared"], *case["buffers"]]
    fill(network.double(), case["type"], gain=MANIFEST["fill"]["gain"], but=left)
    size = case["image"]
    batch, shape = size["batch"], (size["batch"], 3, size["height"], size["width"])
    blurry = image(size["seed"], shape)
    with torch.set_grad_enabled("gradients" in case):
        if case["type"] == "DiffIRS1":
            out, prior = network(blurry, image(size["seed"] + 1000, shape))
            return network, {"out0": out, "ipr": prior}
        noise = normal(size["seed"] + 2000, (batch, 256))
        prior = normal(size["seed"] + 3000, (batch, 256))
        (out,) = network(blurry, noise=noise)
        trained, priors = network.from_prior(blurry, prior, noise=noise)
        condition = network.condition(blurry)
        return network, {
            "out0": out,
            "ipr": network.priors(blurry, noise)[-1],
            "condition": condition,
            "denoise_t1": network.denoise(noise, condition, 1),
            "train_out": trained,
            "train_ipr_list": torch.stack(priors),
        }


def test_stage_1_has_the_published_names_shapes_and_figures():
    reference = MANIFEST["networks"]["DiffIRS1"]
    with torch.device("meta"):
        network, picture = build(reference), torch.empty(1, 3, 256, 256)
        macs = count_macs(network, picture, picture)
    shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    assert shapes == reference["state_dict"]
    assert sum(p.numel() for p in network.parameters()) == reference["parameters"]
    assert macs == reference["macs_256"]["total"]


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_the_published_ones(name):
    case, values = CASES[name], load_arrays("baselines/outputs.npz")
    _, outputs = computed(name)
    assert outputs.keys() == case["outputs"].keys()
    for key, out in outputs.items():
        assert relative_error(out, values[f"{case['type']}/{case['case']}/{key}"]) < 1e-9, key


@pytest.mark.parametrize("name", STAGE2)
def test_tables_are_the_published_ones(name):
    case, values = CASES[name], load_arrays("baselines/outputs.npz")
    with torch.device("meta"):
        tables = build(case).state_dict()
    for key in case["buffers"]:
        reference = values[f"{case['type']}/{case['case']}/buffers/{key}"]
        np.testing.assert_array_equal(tables[key].numpy(), reference, err_msg=key)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "gradients" in case])
def test_gradients_are_the_published_ones(name):
    reference = CASES[name]["gradients"]
    network, outputs = computed(name)
    loss = outputs["out0"].square().mean()
    assert loss.item() == pytest.approx(reference["loss"], rel=1e-9)
    assert gradient_norms(network, loss) == pytest.approx(reference["norms"], rel=1e-8)


def test_the_chain_begins_with_torchs_noise_where_none_is_given():
    network, _ = computed("DiffIRS2-small")
    blurry = image(1, (2, 3, 8, 16))
    torch.manual_seed(5)
    (drawn,) = network(blurry)
    torch.manual_seed(5)
    (given,) = network(blurry, noise=torch.randn(2, 256, dtype=torch.float64))
    torch.testing.assert_close(drawn, given, rtol=0, atol=0)
