"""What can be measured: restoring, training steps, loading and test runs.

Each function takes the option file, the arguments of `hidiff benchmark` and the machine, and
returns a list of cases, `{'case': title, 'variants': {name: timing}}`. All variants of a case run
in turn in one process on the same input.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from hidiff.benchmark.roofline import restoring, training_step
from hidiff.benchmark.timing import alternate, bytes_for_backward, comparison
from hidiff.benchmark.variants import Machine, Variant
from hidiff.data import (
    BatchPlan,
    Mixture,
    PhaseBatchSampler,
    build_dataset,
    build_training_set,
    training_batches,
)
from hidiff.data.pairs import PairSet
from hidiff.data.transfer import to_device
from hidiff.engine.optim import GRAD_CLIP_NORM, build_optimizer, clip_gradients
from hidiff.evaluation.evaluator import build_test_scorer, evaluate
from hidiff.models import DeblurModel, build_model
from hidiff.models.base import SIDE_MULTIPLE
from hidiff.options import DatasetOptions, Options, Phase
from hidiff.utils.distributed import Processes
from hidiff.utils.errors import UserError

BASELINE = "plain+fp32"


def _phases(options: Options, chosen: Sequence[int] | None) -> dict[int, Phase]:
    """The phases of these numbers, or all."""
    train, data = options.for_training()
    phases = dict(enumerate(data.phases(train.total_iter), start=1))
    for number in chosen or ():
        if number not in phases:
            raise UserError(f"--phase {number}: the option file has phases 1 to {len(phases)}")
    return {number: phases[number] for number in chosen or phases}


def build(options: Options, device: torch.device) -> DeblurModel:
    """The model of an option file with random weights, on the device."""
    torch.manual_seed(options.manual_seed)
    model = build_model(options.sections).to(device)
    model.use_kernels(options.kernels)
    return model


def restore(options: Options, args: argparse.Namespace, machine: Machine) -> list[dict[str, Any]]:
    """Restore one image of random pixels."""
    model = build(options, args.device).eval()
    image = torch.rand(1, 3, *args.size, device=args.device)
    noise = model.draw_noise(1, None)
    noise = None if noise is None else noise.to(args.device)
    padded = (side + -side % SIDE_MULTIPLE for side in args.size)
    work = restoring(options.sections, *padded)

    def prepare(variant: Variant) -> Callable[[], Any]:
        own = variant.prepare(model)
        return variant.wrap(own, lambda: own.restore(image, image, noise=noise))

    timings = alternate(
        {variant.name: prepare(variant) for variant in args.variants},
        repeats=args.repeats,
        device=args.device,
    )
    timed = comparison(timings, args.variants[0].name)
    for variant in args.variants:
        timed[variant.name]["roofline"] = machine.roofline(work, variant)
    return [{"case": f"{args.size[0]}×{args.size[1]}", "variants": timed}]


def train_step(
    options: Options, args: argparse.Namespace, machine: Machine
) -> list[dict[str, Any]]:
    """Training steps on random pixels, with the batch and patch size of each phase."""
    train, _ = options.for_training()
    model = build(options, args.device).train()
    models = {variant.name: variant.prepare(model) for variant in args.variants}
    optimizers = {n: build_optimizer(train.optim_total, m) for n, m in models.items()}
    cases = []
    for number, phase in _phases(options, args.phase).items():
        batch_size, patch_size = args.batch or phase.batch_size, args.patch or phase.patch_size
        lq, gt = torch.rand(2, batch_size, 3, patch_size, patch_size, device=args.device)

        def prepare(
            variant: Variant, lq: torch.Tensor = lq, gt: torch.Tensor = gt
        ) -> Callable[[], Any]:
            own, optimizer = models[variant.name], optimizers[variant.name]

            def step() -> None:
                sum(own(lq, gt).values()).backward()
                clip_gradients(own, GRAD_CLIP_NORM)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            return variant.wrap(own, step)

        timings = alternate(
            {variant.name: prepare(variant) for variant in args.variants},
            repeats=args.repeats,
            device=args.device,
        )
        timed = comparison(timings, args.variants[0].name)
        work = training_step(options.sections, batch_size, patch_size)
        for variant in args.variants:
            own = models[variant.name]
            forward = variant.wrap(own, lambda own=own, lq=lq, gt=gt: own(lq, gt))
            timed[variant.name] |= {
                "roofline": machine.roofline(work, variant),
                "kept_for_backward": bytes_for_backward(forward, own),
            }
        cases.append({"case": f"phase {number}, {batch_size}×{patch_size}²", "variants": timed})
    return cases


def _as_released(
    dataset: PairSet, indices: Sequence[int], phase: Phase, crop_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read, convert, crop and augment a pair for each index; keep the phase's part of them."""
    crops: dict[str, list[torch.Tensor]] = {"lq": [], "gt": []}
    for index in indices:
        pair = dataset[index]
        height, width = pair["lq"].shape[1:]
        top, left = random.randint(0, height - crop_size), random.randint(0, width - crop_size)
        turns, flip = random.randint(0, 3), random.random() < 0.5
        for side, chosen in crops.items():
            crop = pair[side][:, top : top + crop_size, left : left + crop_size]
            crop = torch.rot90(crop, turns, (1, 2))
            chosen.append((crop.flip(1) if flip else crop).contiguous())
    kept = random.sample(range(len(indices)), phase.batch_size)
    start = random.randint(0, crop_size - phase.patch_size)
    part = slice(start, start + phase.patch_size)
    lq, gt = (torch.stack(chosen)[kept][:, :, part, part] for chosen in crops.values())
    return lq, gt


def _cached(section: DatasetOptions, folder: Path) -> DatasetOptions:
    """The same data through a cache in `folder`, where its class has one."""
    more = {"cache": str(folder)} if "cache" in section.source else {}
    return dataclasses.replace(
        section,
        source={**section.source, **more},
        mixture=tuple(_cached(entry, folder) for entry in section.mixture),
    )


def data(options: Options, args: argparse.Namespace, machine: Machine) -> list[dict[str, Any]]:
    """Load the batches of each phase, with one core."""
    section = options.for_training()[1]
    datasets = {"ours": build_training_set(section)}
    if args.cache:
        datasets["ours, cache"] = build_training_set(_cached(section, args.cache))
    plain_dataset = datasets["ours"]
    torch.set_num_threads(1)
    random.seed(options.manual_seed)
    cases = []
    phases = _phases(options, args.phase)
    crop_size, batch_size = section.gt_size, section.batch_size_per_gpu
    assert crop_size is not None and batch_size is not None  # the phases have asked for them
    for number, phase in phases.items():

        def ours(dataset: Mixture, phase: Phase = phase) -> Callable[[], Any]:
            batches = training_batches(
                dataset,
                PhaseBatchSampler(
                    size=len(dataset),
                    shares=dataset.shares,
                    plan=BatchPlan([phase], 1),
                    rank=0,
                    seed=options.manual_seed,
                    crop_size=crop_size,
                    total_iter=1 + args.repeats,  # one call to warm up
                ),
                num_workers=0,
            )
            return lambda: to_device(next(batches), args.device, torch.float32)

        def as_released(phase: Phase = phase) -> None:
            indices = random.choices(range(len(plain_dataset)), k=batch_size)
            for pixels in _as_released(plain_dataset, indices, phase, crop_size):
                pixels.to(args.device)

        work = {"read all": as_released, **{name: ours(d) for name, d in datasets.items()}}
        # The cache compares each frame with its hash once, which is not what an epoch costs later.
        for index in range(len(plain_dataset)) if args.cache else ():
            datasets["ours, cache"][index]
        timed = comparison(
            alternate(work, repeats=args.repeats, device=args.device), baseline="read all"
        )
        for variant in timed.values():
            variant["rate"] = f"{phase.batch_size / variant['median']:.1f} crops/s"
        case = f"phase {number}, {phase.batch_size}×{phase.patch_size}²"
        cases.append({"case": case, "variants": timed})
    return cases


def score(options: Options, args: argparse.Namespace, machine: Machine) -> list[dict[str, Any]]:
    """Read, restore, score and write the first images of the first test set, as test.py does.

    The plain variant does one step after the other; the others read, score and write in threads.
    """
    model = build(options, args.device).eval()
    section = next(iter(options.test_sets().values()))
    dataset = build_dataset(section)
    dataset.pairs = dataset.pairs[: args.images]
    protocol, scorer = build_test_scorer(options.val, section.name)
    processes = Processes(0, 1, args.device)

    with TemporaryDirectory() as folder:

        def prepare(variant: Variant) -> Callable[[], Any]:
            own = variant.prepare(model)

            def work() -> None:
                evaluate(
                    *(own, dataset, scorer, processes),
                    seed=options.manual_seed,
                    label=variant.name,
                    score_blurry=True,
                    picture_path=lambda name: Path(folder, f"{name}.png"),
                    val=dataclasses.replace(options.val, num_workers=0)
                    if variant.plain
                    else options.val,
                )

            return variant.wrap(own, work)

        timings = alternate(
            {variant.name: prepare(variant) for variant in args.variants},
            repeats=args.repeats,
            device=args.device,
        )
    timed = comparison(timings, args.variants[0].name)
    for variant in timed.values():
        variant["rate"] = f"{len(dataset) / variant['median']:.2f} images/s"
    return [{"case": f"{len(dataset)} images, {protocol}", "variants": timed}]


CASES = {"restore": restore, "train-step": train_step, "evaluate": score, "data": data}
