"""The networks against the released models' parameter names and outputs."""

import itertools
import json

import pytest
import torch
from golden_values import PRESETS, fill, load_json, network_case, relative_error

from hidiff import build_network

NETWORKS = ("network_g", "network_le", "network_le_dm", "network_d")
FLOAT32_LIMIT = {"network_g": 1e-4, "network_le": 1e-5, "network_le_dm": 1e-5, "network_d": 1e-5}


@pytest.mark.parametrize("key", NETWORKS)
@pytest.mark.parametrize("preset", PRESETS)
def test_parameter_names_and_shapes_are_the_released_ones(preset, key):
    reference = load_json("manifest.json")[preset][key]
    with torch.device("meta"):
        network = build_network(reference["options"])
    state_dict = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    assert state_dict == reference["state_dict"]
    assert sum(p.numel() for p in network.parameters()) == reference["parameters"]


def cases():
    """(presets, section, type): presets whose networks have the same options share a case.

    The Transformer is computed in float32 once; what differs from preset to preset is its width.
    """
    alike = {}
    for preset, key in itertools.product(PRESETS, NETWORKS):
        options = load_json("manifest.json")[preset][key]["options"]
        alike.setdefault((key, json.dumps(options)), []).append(preset)
    for (key, _), presets in alike.items():
        for dtype in (torch.float64, torch.float32):
            if dtype == torch.float64 or key != "network_g" or "gopro" in presets:
                name = f"{'+'.join(presets)}-{key}-{str(dtype).removeprefix('torch.')}"
                yield pytest.param(presets, key, dtype, id=name)


@pytest.mark.slow("networks of full size; PyTorch convolves float64 slowly, channel by channel")
@pytest.mark.parametrize(("presets", "key", "dtype"), list(cases()))
def test_outputs_are_the_released_ones(presets, key, dtype):
    with torch.device("meta"):
        network = build_network(load_json("manifest.json")[presets[0]][key]["options"]).to(dtype)
    fill(network.to_empty(device="cpu"), key)
    limit = 1e-9 if dtype == torch.float64 else FLOAT32_LIMIT[key]
    inputs, _ = network_case(presets[0], key, dtype)
    with torch.no_grad():
        out = network(*inputs)
    for preset in presets:
        assert relative_error(out, network_case(preset, key, dtype)[1]) < limit
