"""What is measured: restoring an image, and training steps.

Several variants of the options do the same work in turn, in one process and on the same input:
machines are noisy, and the ratio of the medians is what counts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from hidiff.archs.reference import reference_formulas
from hidiff.benchmark.roofline import Machine, restoring, training_step
from hidiff.benchmark.timing import Timing, alternate, bytes_for_backward
from hidiff.engine.optim import GRAD_CLIP_NORM, build_optimizer, clip_gradients
from hidiff.models import DeblurModel, build_model
from hidiff.models.compilation import compile_blocks
from hidiff.models.precision import precision
from hidiff.options import Options, Phase
from hidiff.utils.errors import UserError


@dataclass(frozen=True)
class Variant:
    """One way of computing.

    Args:
        name: in the table.
        options: all of them.
        reference: compute as the papers write it, see `hidiff.archs.reference`.
    """

    name: str
    options: Options
    reference: bool = False

    def formulas(self) -> AbstractContextManager[Any]:
        """What to compute within."""
        return reference_formulas() if self.reference else nullcontext()


@dataclass(frozen=True)
class Measured:
    """What a variant took for a case.

    Args:
        timing: seconds and memory.
        roofline: the least seconds on this machine; None where they cannot be told.
        kept_bytes: what a forward pass keeps for the backward pass; None for restoring.
    """

    timing: Timing
    roofline: float | None
    kept_bytes: int | None = None


Cases = dict[str, dict[str, Measured]]
"""By the case's title and the variant's name."""


def _build(options: Options, device: torch.device) -> DeblurModel:
    """The model with random weights, the same for all variants."""
    torch.manual_seed(options.manual_seed)
    model = build_model(options.sections).to(device)
    model.use_kernels(options.kernels)
    return model


def measure_restoring(
    variants: Sequence[Variant],
    *,
    size: tuple[int, int],
    device: torch.device,
    machine: Machine,
    repeats: int,
) -> Cases:
    """Restore one image of random pixels of `size` (height, width)."""
    image = torch.rand(1, 3, *size, device=device)
    calls = {}
    for variant in variants:
        model = _build(variant.options, device).eval()
        model.strip_rows = "whole" if variant.reference else variant.options.val.strip_rows
        if variant.options.val.compile:
            compile_blocks(model, "val.compile")
            model.strip_rows = "whole"
        calls[variant.name] = _restoring_call(variant, model, image)
    timings = alternate(calls, repeats=repeats, device=device)
    multiples = model.net_g.pad_multiple
    height, width = (n + -n % m for n, m in zip(size, multiples, strict=True))
    measured = {}
    for variant in variants:
        work = restoring(variant.options.sections, height, width)
        least = machine.seconds(work, variant.options.val.precision)
        measured[variant.name] = Measured(timings[variant.name], least)
    return {f"{size[0]}×{size[1]}": measured}


def _restoring_call(
    variant: Variant, model: DeblurModel, image: torch.Tensor
) -> Callable[[], object]:
    noise = model.draw_noise(1, torch.Generator().manual_seed(0))
    noise = None if noise is None else noise.to(image.device)

    def call() -> torch.Tensor:
        with precision(model, variant.options.val.precision), variant.formulas():
            return model.restore(image, image, noise=noise)

    return call


def measure_training(
    variants: Sequence[Variant],
    *,
    phases: Sequence[int] | None,
    batch: int | None,
    patch: int | None,
    device: torch.device,
    machine: Machine,
    repeats: int,
) -> Cases:
    """Training steps on random pixels, with the batch and patch size of each phase.

    Args:
        variants: what to compare; the phases are those of the first one.
        phases: numbers of the phases of progressive training, from 1; None for all.
        batch, patch: in place of the phases' own.
        device, machine, repeats: where and how often.

    Raises:
        UserError: there is no such phase, or the options are not for training.
    """
    models = {}
    for variant in variants:
        train, _ = variant.options.for_training()
        model = _build(variant.options, device).train()
        model.recompute_levels(train.activation_checkpointing)
        if train.compile:
            compile_blocks(model, "train.compile")
        models[variant.name] = model
    cases: Cases = {}
    for number, phase in _phases(variants[0].options, phases).items():
        batch_size, patch_size = batch or phase.batch_size, patch or phase.patch_size
        images = torch.rand(2, batch_size, 3, patch_size, patch_size, device=device)
        steps = {v.name: _training_step(v, models[v.name], images) for v in variants}
        timings = alternate(steps, repeats=repeats, device=device)
        measured = {}
        for variant in variants:
            train, _ = variant.options.for_training()
            work = training_step(variant.options.sections, batch_size, patch_size)
            least = machine.seconds(work, train.precision) if work else None
            own = models[variant.name]
            with _computing(variant, own):
                kept = bytes_for_backward(functools.partial(own, *images), own)
            measured[variant.name] = Measured(timings[variant.name], least, kept)
        cases[f"phase {number}, {batch_size}×{patch_size}²"] = measured
    return cases


def _computing(variant: Variant, model: DeblurModel) -> ExitStack:
    """Precision and formulas of a training step."""
    train, _ = variant.options.for_training()
    stack = ExitStack()
    stack.enter_context(precision(model, train.precision))
    stack.enter_context(variant.formulas())
    return stack


def _training_step(
    variant: Variant, model: DeblurModel, images: torch.Tensor
) -> Callable[[], object]:
    train, _ = variant.options.for_training()
    optimizer = build_optimizer(train.optim_total, model)
    lq, gt = images

    def step() -> None:
        with _computing(variant, model):
            sum(model(lq, gt).values()).backward()
        clip_gradients(model, GRAD_CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _phases(options: Options, chosen: Sequence[int] | None) -> dict[int, Phase]:
    train, data = options.for_training()
    phases = dict(enumerate(data.phases(train.total_iter), start=1))
    for number in chosen or ():
        if number not in phases:
            raise UserError(f"--phase {number}: the option file has phases 1 to {len(phases)}")
    return {number: phases[number] for number in chosen or phases}
