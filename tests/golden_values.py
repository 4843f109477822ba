"""The reference values in tests/golden, and the rule that fills networks and inputs for them."""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hidiff.engine.optim import (
    GRAD_CLIP_NORM,
    build_lr_schedule,
    build_optimizer,
    clip_gradients,
    set_lr,
)
from hidiff.models import DeblurModel, build_model

GOLDEN = Path(__file__).resolve().parent / "golden"
"""The reference values, computed from the released models' definitions."""

SCHEDULES = {
    "gopro": {"apply_ldm": False, "timesteps": 8},
    "realblur": {"apply_ldm": True, "timesteps": 16},
    "hidiff2": {"apply_ldm": True, "timesteps": 16},
}
"""The released models' diffusion schedules, by the names that the reference values have."""

SECTIONS = {
    "net_g": "network_g",
    "net_le": "network_le",
    "net_le_dm": "network_le_dm",
    "net_d": "network_d",
}
"""The option section of a model's network, which its tensors are filled by."""


def fill(
    network: nn.Module, prefix: str, *, gain: float = 1.0, but: Collection[str] = ()
) -> nn.Module:
    """Fill every tensor of the state dict; the network itself is returned.

    Args:
        prefix: the network's option section, see `SECTIONS`.
        gain: factor of weights with two or more axes.
        but: keys that are left as they are.
    """
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if key in but:
                continue
            seed = zlib.crc32(f"{prefix}.{key}".encode())
            x = np.random.RandomState(seed).standard_normal(tuple(tensor.shape))
            if key.endswith("temperature") or (key.endswith("weight") and tensor.ndim < 2):
                x = 1 + 0.1 * x
            elif key.endswith("weight"):
                x = gain * x / np.sqrt(np.prod(tensor.shape[1:]))
            else:
                x = 0.1 * x
            tensor.copy_(torch.from_numpy(np.asarray(x)))
    return network


def image(seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    """Uniform numbers in [0, 1)."""
    return torch.from_numpy(np.random.RandomState(seed).random_sample(shape)).to(dtype)


def normal(seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).to(dtype)


def relative_error(out: Tensor, reference: Any) -> float:
    """‖out − reference‖ / ‖reference‖, in float64 on the CPU."""
    out = out.detach().cpu().double()
    reference = torch.as_tensor(reference).cpu().double()
    return float((out - reference).norm() / reference.norm())


def tiny_options(released: Mapping[str, Any]) -> dict[str, Any]:
    """A released option file whose networks are made tiny, as for the reference trainings.

    Args:
        released: the file as parsed.
    """
    options = {k: dict(v) if isinstance(v, Mapping) else v for k, v in released.items()}
    options["network_g"] |= {
        "dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "embed_dim": 8,
    }  # fmt: skip
    for key in ("network_le", "network_le_dm"):
        if key in options:
            options[key] |= {"embed_dim": 8, "block_num": 1}
    if options.get("network_d", {}).get("type") == "denoising":
        options["network_d"] |= {
            "in_channel": 32, "out_channel": 32, "inner_channel": 16, "block_num": 3,
        }  # fmt: skip
    elif "network_d" in options:
        options["network_d"] |= {"n_feats": 8, "n_denoise_res": 1}
    return options


def filled_model(options: Mapping[str, Any], dtype: torch.dtype) -> DeblurModel:
    """The model of the options in training mode on the CPU, all networks filled."""
    model = build_model(options).to(dtype).train()
    for attribute, network in model.networks().items():
        fill(network, SECTIONS[attribute])
    return model


def five_steps(model: DeblurModel, train: Mapping[str, Any]) -> Iterator[dict[str, float]]:
    """Train `filled_model` of `tiny_options` for five steps, where and in what it computes.

    Args:
        train: the section `train` of the option file.

    Yields:
        For each step its losses by name, the learning rate `lr` and `norm`, the gradient's before
        it is clipped.
    """
    parameter = next(model.parameters())
    optimizer = build_optimizer(train["optim_total"], model)
    lr = build_lr_schedule(train["scheduler"], base_lr=2e-4, total_iter=300000)
    lq, gt = (image(seed, (2, 3, 32, 32)).to(parameter) for seed in (11, 12))
    for step in range(5):
        set_lr(optimizer, lr(step + 1))
        drawn = "noise" in model.draw(1)
        draws = {"noise": normal(100 + step, (2, 16, 32)).to(parameter)} if drawn else {}
        losses = model(lq, gt, **draws)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        norm = clip_gradients(model, GRAD_CLIP_NORM).item()
        optimizer.step()
        yield {name: loss.item() for name, loss in losses.items()} | {
            "lr": lr(step + 1),
            "norm": norm,
        }


PRESETS = tuple(SCHEDULES)


@cache
def load_json(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text())


@cache
def load_arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / name) as file:
        return dict(file)


def network_case(preset: str, key: str, dtype: torch.dtype) -> tuple[tuple[Any, ...], np.ndarray]:
    """Inputs of a released network and its output.

    Args:
        preset: of `PRESETS`.
        key: the network's section, such as 'network_g'.
        dtype: of the inputs.
    """
    values = load_arrays("networks.npz")
    lq, gt = (image(seed, (1, 3, 40, 56), dtype) for seed in (1, 2))
    le, c = (torch.from_numpy(values[f"{preset}/{name}"]).to(dtype) for name in ("le", "le_dm"))
    inputs, output = {
        "network_g": ((lq, le), "g"),
        "network_le": ((lq, gt), "le"),
        "network_le_dm": ((lq,), "le_dm"),
        "network_d": ((normal(3, (1, 16, 256), dtype), c, 5), "d_t5"),
    }[key]
    return inputs, values[f"{preset}/{output}"]


def gradient_norms(network: nn.Module, loss: Tensor) -> dict[str, float]:
    """The norm of the loss's gradient over the parameters of each part of the network."""
    parameters = dict(network.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    squares: dict[str, float] = defaultdict(float)
    for key, gradient in zip(parameters, gradients, strict=True):
        squares[key.split(".")[0]] += gradient.square().sum().item()
    return {part: square**0.5 for part, square in squares.items()}
