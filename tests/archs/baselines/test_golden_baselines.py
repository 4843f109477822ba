"""The baseline networks against the published parameter names, outputs, gradients and figures."""

import pytest
import torch
from golden_values import fill, gradient_norms, image, load_arrays, load_json, relative_error

from hidiff import build_network
from hidiff.report.macs import count_macs

MANIFEST = load_json("baselines/manifest.json")


# DiffIR's networks are published as one: test_golden_diffir.py.
NETWORKS = {n: e for n, e in MANIFEST["networks"].items() if not e["type"].startswith("DiffIR")}
CASES = {
    f"{case['type']}-{case['case']}": case
    for case in MANIFEST["cases"]
    if not case["type"].startswith("DiffIR")
}


def build(entry):
    return build_network({"type": entry["type"], **entry["options"]})


@pytest.fixture(scope="module")
def computed(request):
    """A case, its network in float64 filled by rule, and the network's outputs."""
    case = CASES[request.param]
    network = build(case).double().eval()
    fill(network, case["type"], gain=MANIFEST["fill"]["gain"], but=case["shared"])
    size = case["image"]
    inputs = image(size["seed"], (size["batch"], 3, size["height"], size["width"]))
    with torch.set_grad_enabled("gradients" in case):
        return case, network, network(inputs)


def case_param(name):
    """The cases of full size, where the network also has a small one, are slow."""
    kind, case = name.split("-")
    if not case.startswith("published") or f"{kind}-small" not in CASES:
        return name
    return pytest.param(name, marks=pytest.mark.slow("a network of full size in float64"))


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

    if isinstance(reference["input_multiple_of"], int):
        assert set(network.pad_multiple) == {reference["input_multiple_of"]}


@pytest.mark.parametrize("computed", [case_param(name) for name in CASES], indirect=True)
def test_outputs_are_the_published_ones(computed):
    case, network, outputs = computed
    values = load_arrays("baselines/outputs.npz")
    assert len(outputs) == case["n_outputs"]
    for index, out in enumerate(outputs):
        reference = values[f"{case['type']}/{case['case']}/out{index}"]
        assert relative_error(out, reference) < 1e-9
    assert outputs[network.final_output] is outputs[case["final"]]


@pytest.mark.parametrize(
    "computed", [n for n, c in CASES.items() if "gradients" in c], indirect=True
)
def test_gradients_are_the_published_ones(computed):
    case, network, outputs = computed
    reference = case["gradients"]
    loss = torch.cat([out.flatten() for out in outputs]).square().mean()
    assert loss.item() == pytest.approx(reference["loss"], rel=1e-9)
    assert gradient_norms(network, loss) == pytest.approx(reference["norms"], rel=1e-8)
