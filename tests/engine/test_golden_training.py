"""Five training steps of each stage against the release's, in float64."""

import golden_values as golden
import numpy as np
import pytest
import torch
from golden_values import image, load_json

from hidiff import build_model
from hidiff.engine.optim import build_lr_schedule, build_optimizer

SCHEDULER = {
    "type": "CosineAnnealingRestartCyclicLR",
    "periods": [100000, 200000],
    "restart_weights": [1, 1],
    "eta_mins": [2e-4, 1e-6],
}


def tiny_options(name: str) -> dict:
    """The released option file, its networks made tiny as the reference's README says."""
    dataset, stage = name.split("_")
    file = {"gopro": "GoPro", "realblur": "RealBlur_J"}[dataset]
    released = load_json("released_options.json")[f"train/{file}_{stage.upper()}.yml"]["options"]
    return golden.tiny_options(released)


@pytest.mark.parametrize("name", ["gopro_s1", "gopro_s2", "realblur_s1", "realblur_s2"])
def test_five_steps_are_the_released_ones(name):
    reference = load_json("train.json")[name]
    options = tiny_options(name)
    model = golden.filled_model(options, torch.float64)
    for step, found in enumerate(golden.five_steps(model, options["train"])):
        expected = dict(reference["losses"][step])
        assert found.pop("lr") == expected.pop("lr")
        norm = found.pop("norm")
        assert set(found) == set(expected)
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-6)
        np.testing.assert_allclose(norm, reference["grad_norm_before_clip"][step][0], rtol=1e-6)
    for attribute, sums in reference["param_sums_after"].items():
        parameters = dict(model.networks()[attribute].named_parameters())
        assert set(parameters) == set(sums)
        for key, value in sums.items():
            np.testing.assert_allclose(
                parameters[key].sum().item(), value, rtol=1e-6, atol=1e-6, err_msg=key
            )


def test_stage_two_leaves_the_encoder_of_stage_one_alone():
    model = build_model(tiny_options("gopro_s2")).train()
    before = {k: v.clone() for k, v in model.net_le.state_dict().items()}
    optimizer = build_optimizer(tiny_options("gopro_s2")["train"]["optim_total"], model)
    losses = model(image(1, (2, 3, 32, 32)).float(), image(2, (2, 3, 32, 32)).float())
    sum(losses.values()).backward()
    optimizer.step()
    assert not model.net_le.training
    assert all(p.grad is None for p in model.net_le.parameters())
    for key, value in model.net_le.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", ["gopro_s1", "gopro_s2", "realblur_s1", "realblur_s2"])
def test_every_trained_parameter_gets_a_gradient(name):
    """One data-parallel wrapper goes around the model; unused parameters would break it."""
    model = build_model(tiny_options(name)).train()
    losses = model(image(1, (2, 3, 32, 32)).float(), image(2, (2, 3, 32, 32)).float())
    sum(losses.values()).backward()
    for network_name, network in model.trained_networks().items():
        for key, parameter in network.named_parameters():
            assert parameter.grad is not None, f"{network_name}.{key}"


def test_learning_rates_are_the_released_ones():
    lr = build_lr_schedule(SCHEDULER, base_lr=2e-4, total_iter=300000)
    reference = load_json("train.json")["lr"]
    assert len(reference) >= 12
    for step, value in reference.items():
        assert lr(int(step)) == value, step
