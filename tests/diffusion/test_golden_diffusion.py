"""Schedule tables and reverse chains against the released models'."""

import pytest
import torch
from golden_values import PRESETS, SCHEDULES, fill, load_arrays, load_json, normal, relative_error

from hidiff import build_network
from hidiff.diffusion import LatentDDPM


@pytest.mark.parametrize("preset", PRESETS)
def test_tables_are_the_released_ones(preset):
    values = load_arrays("networks.npz")
    tables = dict(LatentDDPM(**SCHEDULES[preset]).tables.named_buffers())
    assert len(tables) == 8
    for name, table in tables.items():
        reference = torch.from_numpy(values[f"{preset}/sched/{name}"])
        torch.testing.assert_close(table.double(), reference, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("preset", PRESETS)
def test_noising_and_reverse_chain_are_the_released_ones(preset):
    values = load_arrays("networks.npz")
    ddpm = LatentDDPM(**SCHEDULES[preset])
    options = load_json("manifest.json")[preset]["network_d"]["options"]
    denoiser = fill(build_network(options).double(), "network_d")
    noise = normal(3, (1, 16, 256))
    z = torch.from_numpy(values[f"{preset}/le"])
    c = torch.from_numpy(values[f"{preset}/le_dm"])
    with torch.no_grad():
        z_T = ddpm.training_start(z, noise)
        from_noise = ddpm.reverse(denoiser, noise, c)
        from_z_T = ddpm.reverse(denoiser, z_T, c)
    assert relative_error(z_T, values[f"{preset}/train_zT"]) < 1e-6
    assert relative_error(from_noise, values[f"{preset}/prior_from_noise"]) < 1e-6
    assert relative_error(from_z_T, values[f"{preset}/prior_train"]) < 1e-6
