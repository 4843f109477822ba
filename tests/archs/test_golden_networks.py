"""The networks against the released models' parameter names and outputs."""

import itertools
import json

import pytest
import torch
from golden_values import PRESETS, fill, image, load_arrays, load_json, normal, relative_error

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
    values = load_arrays("networks.npz")
    with torch.device("meta"):
        network = build_network(load_json("manifest.json")[presets[0]][key]["options"]).to(dtype)
    fill(network.to_empty(device="cpu"), key)
    lq, gt = (image(seed, (1, 3, 40, 56), dtype) for seed in (1, 2))
    noise = normal(3, (1, 16, 256), dtype)
    le, c = (torch.from_numpy(values[f"{presets[0]}/{name}"]).to(dtype) for name in ("le", "le_dm"))
    with torch.no_grad():
        out, name = {
            "network_g": lambda: (network(lq, le), "g"),
            "network_le": lambda: (network(lq, gt), "le"),
            "network_le_dm": lambda: (network(lq), "le_dm"),
            "network_d": lambda: (network(noise, c, 5), "d_t5"),
        }[key]()
    limit = 1e-9 if dtype == torch.float64 else FLOAT32_LIMIT[key]
    for preset in presets:
        assert relative_error(out, values[f"{preset}/{name}"]) < limit
