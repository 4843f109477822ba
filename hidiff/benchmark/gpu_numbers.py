"""Items of `hidiff gpu-check` about numbers: are those of networks and kernels right?"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor

from hidiff import kernels
from hidiff.benchmark import golden, kernel_errors
from hidiff.benchmark.gpu_setting import Row, Setting, attempt
from hidiff.kernels import Mode
from hidiff.kernels.choosing import cuda_milliseconds
from hidiff.models import DeblurModel, build_model
from hidiff.models.precision import precision
from hidiff.options import Precision, load_options

LIMITS: dict[str, dict[str, float | None]] = {
    "fp64": {
        "encoders": 1e-9, "transformer": 1e-9, "prior": 1e-6, "restored": 1e-6,
        "losses": 1e-6, "gradient": 1e-6,
    },
    "fp32": {
        "encoders": 1e-5, "transformer": 1e-4, "prior": 1e-4, "restored": 1e-4,
        "losses": 1e-4, "gradient": 5e-3,
    },
    "tf32": {
        "encoders": 5e-3, "transformer": 2e-2, "prior": 3e-2, "restored": 5e-2,
        "losses": 1e-2, "gradient": None,
    },
    "bf16": {
        "encoders": 1e-5, "transformer": 6e-2, "prior": 1e-4, "restored": 6e-2,
        "losses": 1e-2, "gradient": 0.2,
    },
}  # fmt: skip
"""Relative errors that rounding explains: three to ten times those of the filled networks on a
CPU, where TF32 was imitated by rounding the inputs of all products. The gradient of stage 2 goes
through the reverse chain, whose weights at t = T multiply TF32's rounding by 174: with filled
weights nothing is left of it (0.75), so it has no limit."""

NORM_LIMITS = {"fp64": 1e-6, "fp32": 5e-3, "tf32": 0.2, "bf16": 0.3}
"""The same for the gradient's norm in the five steps of a reference training."""


def _in(
    stack: ExitStack, model: DeblurModel, name: str, device: torch.device, mode: Mode = "eager"
) -> DeblurModel:
    """A copy of the model that computes in a precision, 'fp64' among them, within the stack."""
    dtype = torch.float64 if name == "fp64" else torch.float32
    own = copy.deepcopy(model).to(device, dtype)
    own.strip_rows = "whole"
    own.use_kernels(mode)  # each kernel takes a while to compile
    stack.enter_context(precision(own, cast(Precision, "fp32" if name == "fp64" else name)))
    return own


def _outputs(model: DeblurModel, lq: Tensor, gt: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """What the networks of stage 2 compute, by the reference values' names."""
    parameter = next(model.parameters())
    lq, gt, noise = (t.to(parameter) for t in (lq, gt, noise))
    with torch.no_grad():
        le, c = model.net_le(lq, gt), model.net_le_dm(lq)
        return {
            "le": le,
            "le_dm": c,
            "g": model.net_g(lq, le),
            "prior_from_noise": model.diffusion.reverse(model.net_d, noise, c),
            "restored": model.eval().restore(lq, noise=noise),
        }


KINDS = {
    "le": "encoders",
    "le_dm": "encoders",
    "g": "transformer",
    "prior_from_noise": "prior",
}
"""What limits an output; the others go by their own names."""


def _training(model: DeblurModel, lq: Tensor, gt: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """Losses and gradient of a step of stage 2."""
    parameter = next(model.train().parameters())
    losses = model(*(t.to(parameter) for t in (lq, gt)), noise=noise.to(parameter))
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(sum(losses.values()), trained)
    return {
        "losses": torch.stack([loss.detach() for loss in losses.values()]),
        "gradient": torch.cat([gradient.flatten() for gradient in gradients]),
    }


def networks(setting: Setting) -> Iterator[Row]:
    """Filled networks against float64 on the CPU, and against the reference values."""
    sizes, device = setting.sizes, setting.device
    torch.backends.cudnn.benchmark = False  # a search for each of many small convolutions
    sections = load_options(sizes.stage2).sections
    model = golden.filled_model(sections, torch.float64)
    model.strip_rows = "whole"
    shape = (1, 3, *sizes.numbers)
    noise = golden.normal(3, (1, model.net_g.group**2, model.net_g.prior_dim))
    inputs = golden.image(1, shape), golden.image(2, shape), noise
    expected = _training(model, *inputs) | _outputs(model, *inputs)
    for name in sizes.precisions:
        yield from _errors("float64 on the CPU", model, name, device, inputs, expected)
    if sizes.golden and (golden.GOLDEN / "networks.npz").is_file():
        yield from _golden_networks(setting, sections)
    if sizes.trajectories and (golden.GOLDEN / "train.json").is_file():
        yield from _golden_trajectories(setting)
    for name in ("fp32", "bf16") if device.type == "cuda" else ():
        against = "float64 on the CPU, with Triton"
        yield from _errors(against, model, name, device, inputs, expected, "triton")


def _errors(
    against: str,
    model: DeblurModel,
    name: str,
    device: torch.device,
    inputs: tuple[Tensor, Tensor, Tensor],
    expected: Mapping[str, Tensor],
    mode: Mode = "eager",
) -> Iterator[Row]:
    """Rows of one precision's errors in all that is expected."""
    place = {"against": against, "precision": name}

    def compute() -> Row:
        with ExitStack() as stack:
            own = _in(stack, model, name, device, mode)
            return (_training(own, *inputs) if "losses" in expected else {}) | _outputs(
                own, *inputs
            )

    found = attempt({}, compute)
    if "error" in found:
        yield place | found
        return
    for key, reference in expected.items():
        error = golden.relative_error(found[key], reference)
        limit = LIMITS[name][KINDS.get(key, key)]
        verdict = {} if limit is None else {"ok": error <= limit}
        yield place | {"value": key, "difference": error, "limit": limit} | verdict


def _golden_networks(setting: Setting, sections: Mapping[str, object]) -> Iterator[Row]:
    with np.load(golden.GOLDEN / "networks.npz") as file:
        values = dict(file)
    manifest = json.loads((golden.GOLDEN / "manifest.json").read_text())
    lq, gt = (golden.image(seed, (1, 3, 40, 56)) for seed in (1, 2))
    inputs = (lq, gt, golden.normal(3, (1, 16, 256)))
    for preset in setting.sizes.golden:
        own = {key: part["options"] for key, part in manifest[preset].items()}
        schedule = {"diffusion_schedule": golden.SCHEDULES[preset]}
        model = golden.filled_model({**sections, **own, **schedule}, torch.float64)
        keys = ("le", "le_dm", "g", "prior_from_noise", "restored")
        expected = {key: torch.from_numpy(values[f"{preset}/{key}"]) for key in keys}
        for name in setting.sizes.precisions:
            against = f"reference values, {preset}"
            yield from _errors(against, model, name, setting.device, inputs, expected)


def _golden_trajectories(setting: Setting) -> Iterator[Row]:
    """Five training steps, whose losses and gradient norms are known."""
    reference = json.loads((golden.GOLDEN / "train.json").read_text())
    released = json.loads((golden.GOLDEN / "released_options.json").read_text())
    files = {"gopro": "GoPro", "realblur": "RealBlur_J"}
    for run, name in itertools.product(setting.sizes.trajectories, setting.sizes.precisions):
        dataset, stage = run.split("_")
        file = f"train/{files[dataset]}_{stage.upper()}.yml"

        def five(run: str = run, name: str = name, file: str = file) -> Row:
            options = golden.tiny_options(released[file]["options"])
            with ExitStack() as stack:
                model = golden.filled_model(options, torch.float64)
                own = _in(stack, model, name, setting.device)
                steps = list(golden.five_steps(own, options["train"]))
            losses = [
                abs(found[key] / value - 1)
                for found, step in zip(steps, reference[run]["losses"], strict=True)
                for key, value in step.items()
            ]
            norms = [
                abs(found["norm"] / known[0] - 1)
                for found, known in zip(steps, reference[run]["grad_norm_before_clip"], strict=True)
            ]
            limit = LIMITS[name]["losses"]
            return {
                "value": "losses of five steps",
                "difference": max(losses),
                "limit": limit,
                "norms": max(norms),
                "ok": max(losses) <= limit and max(norms) <= NORM_LIMITS[name],
            }

        yield attempt({"against": f"reference training, {run}", "precision": name}, five)


def triton(setting: Setting) -> Iterator[Row]:
    """The Triton kernels against exact results, and their time against eager."""
    sections = load_options(setting.sizes.stage2).sections
    with torch.device("meta"):
        model = build_model(sections)
    shapes = kernel_errors.shapes(model, setting.sizes.kernels)
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        for (name, channels, side), calls in shapes.items():
            for dtype in setting.sizes.kernel_types:
                place = {
                    "kernel": name,
                    "shape": f"{channels}×{side}²",
                    "type": str(dtype).removeprefix("torch."),
                    "calls": calls,
                }
                yield attempt(place, partial(_kernel, name, channels, side, dtype, setting.device))
        if setting.device.type == "cuda" and torch.bfloat16 in setting.sizes.kernel_types:
            for heads, width in ((1, 48), (2, 48), (4, 48), (8, 48)):
                shape = f"{heads}×{width}"
                place = {"kernel": "Gram matrix", "shape": shape, "type": "bfloat16"}
                pixels = (setting.sizes.kernels // heads) ** 2
                yield attempt(place, partial(_gram, (heads, width, pixels), setting.device))
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _kernel(name: str, channels: int, side: int, dtype: torch.dtype, device: torch.device) -> Row:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, side, side, generator=generator).to(device, dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, 1, 3, 3, generator=generator).to(device)
    share = kernel_errors.share_of_bound(name, x, weight, None, "triton")
    times = {
        mode: list(kernel_errors.milliseconds(name, x, own, mode))
        for mode, own in (("eager", weight.to(dtype)), ("triton", weight))
    }
    return {
        "share of bound": share,
        "eager [ms]": times["eager"][0],
        "triton [ms]": times["triton"][0],
        "eager, both passes [ms]": times["eager"][1],
        "triton, both passes [ms]": times["triton"][1],
        "ok": share <= 1,
    }


def _gram(shape: tuple[int, int, int], device: torch.device) -> Row:
    """q kᵀ of bfloat16 on tensor cores."""
    q, k = torch.randn(2, 1, *shape, device=device).bfloat16()
    exact = q.double() @ k.double().mT
    error = golden.relative_error(kernels.gram_matrix(q, k, mode="triton"), exact)
    modes: tuple[Mode, Mode] = ("eager", "triton")
    times = [cuda_milliseconds(partial(kernels.gram_matrix, q, k, mode=mode)) for mode in modes]
    return {
        "share of bound": error / kernel_errors.FLOAT32,
        "eager [ms]": times[0],
        "triton [ms]": times[1],
        "ok": error <= kernel_errors.FLOAT32,
    }
