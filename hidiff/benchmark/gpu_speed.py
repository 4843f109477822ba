"""Items of `hidiff gpu-check` about time and memory."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from hidiff.benchmark import cases
from hidiff.benchmark.gpu_setting import Row, Setting, attempt, free, in_a_line
from hidiff.benchmark.variants import Variant
from hidiff.engine.dry_run import measure_phase
from hidiff.engine.micro_batch import largest_that_fits
from hidiff.engine.speed import WARM_UP
from hidiff.engine.trainer import Trainer
from hidiff.errors import is_out_of_memory
from hidiff.models.precision import precision
from hidiff.options import Options, Phase, load_options

Measure = Callable[[list[Variant]], dict[str, Any]]


def restoring(setting: Setting) -> Iterator[Row]:
    """Restoring one image, in all variants but the compiled ones."""
    yield from _compare({}, _restore(setting), setting.sizes.variants)


def _restore(setting: Setting) -> Measure:
    options = load_options(setting.sizes.test)

    def measure(variants: list[Variant]) -> dict[str, Any]:
        args = argparse.Namespace(
            device=setting.device,
            size=setting.sizes.restored,
            variants=variants,
            repeats=setting.sizes.repeats,
        )
        return cases.restore(options, args, setting.machine)[0]

    return measure


def training(setting: Setting) -> Iterator[Row]:
    """A training step of each phase with the largest batch that fits, the longest phase first."""
    sizes = setting.sizes
    for file in (sizes.stage2, sizes.stage1):
        for number, phase in islice(_phases(load_options(file)).items(), sizes.phases):
            yield from _phase(setting, file, number, phase, sizes.variants)


def compiled(setting: Setting) -> Iterator[Row]:
    """torch.compile, which takes a while for each shape, where it matters most."""
    sizes = setting.sizes
    if not sizes.compiled:
        return
    yield from _compare({}, _restore(setting), sizes.compiled)
    number, phase = next(iter(_phases(load_options(sizes.stage2)).items()))
    yield from _phase(setting, sizes.stage2, number, phase, sizes.compiled)


def _phases(options: Options) -> dict[int, Phase]:
    train, data = options.for_training()
    phases = dict(enumerate(data.phases(train.total_iter), start=1))
    return dict(sorted(phases.items(), key=lambda item: -item[1].iters))


def _phase(
    setting: Setting, file: str, number: int, phase: Phase, variants: Sequence[str]
) -> Iterator[Row]:
    options, sizes = load_options(file), setting.sizes
    place = {"stage": options.model_type}
    own = dataclasses.replace(
        phase,
        batch_size=sizes.batch or phase.batch_size,
        patch_size=sizes.patch or phase.patch_size,
    )
    fits = attempt(place, lambda: {"batch": _fitting(setting, options, own, variants[0])})
    if "error" in fits:
        yield fits
        return
    batch = fits["batch"]

    def measure(chosen: list[Variant]) -> dict[str, Any]:
        args = argparse.Namespace(
            device=setting.device,
            phase=[number],
            batch=batch,
            patch=sizes.patch,
            variants=chosen,
            repeats=sizes.repeats,
        )
        return cases.train_step(options, args, setting.machine)[0]

    place["fits"] = f"{batch} of {own.batch_size}"
    for row in _compare(place, measure, variants):
        if "time [ms]" in row:
            row["images/s"] = 1e3 * batch / row["time [ms]"]
        yield row


def _fitting(setting: Setting, options: Options, phase: Phase, name: str) -> int:
    """Images of the phase's batch that fit at once in a variant, as `train.micro_batch: auto`.

    The first variant is taken, the plain one, which needs the most.
    """
    variant = Variant.parse(name)
    model = variant.prepare(cases.build(options, setting.device)).train()
    return variant.wrap(model, lambda: largest_that_fits(model, phase, setting.processes))()


def _compare(place: Row, measure: Measure, names: Sequence[str]) -> Iterator[Row]:
    """Rows of a case's variants; where memory does not hold all of them, each is measured alone."""
    variants = [Variant.parse(name) for name in names]
    try:
        yield from _rows(place, measure(variants))
        return
    except Exception as error:
        if not is_out_of_memory(error):
            # Which one it was shows when each is measured alone.
            place = {**place, "together": in_a_line(error)}
    for variant in variants:
        free()
        found: list[Row] = []

        def one(variant: Variant = variant, found: list[Row] = found) -> Row:
            found.extend(_rows(place, measure([variant])))
            return found[0]

        row = attempt({**place, "variant": variant.name}, one)
        row.pop("speedup", None)
        yield row


def _rows(place: Row, case: dict[str, Any]) -> list[Row]:
    """A row for each variant of a measured case."""
    free()
    rows = []
    for name, timing in case["variants"].items():
        peak, kept = timing["peak_bytes"], timing.get("kept_for_backward")
        rows.append(
            {
                **place,
                "case": case["case"],
                "variant": name,
                "time [ms]": 1e3 * timing["median"],
                "speedup": timing["speedup"],
                "peak [GiB]": None if peak is None else peak / 2**30,
                "kept for backward [GiB]": None if kept is None else kept / 2**30,
                "time / roofline": timing["median"] / timing["roofline"]["bound"],
            }
        )
    return rows


def loading(setting: Setting) -> Iterator[Row]:
    """Share of the time that a training waits for data, the GPU as fast as it gets."""
    sizes = setting.sizes
    steps = sizes.loaded_steps + 2 * WARM_UP
    workers = load_options(sizes.stage1).for_training()[1].num_worker_per_gpu
    batches: dict[str, Any] = {
        "num_worker_per_gpu": workers,
        "batch_size_per_gpu": sizes.loaded,
        "mini_batch_sizes": [sizes.loaded],
        "iters": [steps],
        "gt_size": sizes.patch_size,
        "gt_sizes": [sizes.patch_size],
    }
    roots = {side: str(setting.data / "train" / side) for side in ("input", "target")}
    pairs = {
        "type": "PairedImageIRDataset",
        "dataroot_lq": roots["input"],
        "dataroot_gt": roots["target"],
    }
    places: dict[str, dict[str, Any]] = {
        "image folders": pairs,
        "image folders, cache": pairs | {"cache": str(setting.folder / "cache")},
        "synthetic": {
            "type": "SyntheticBlurDataset",
            "dataroot_gt": roots["target"],
            "min_size": 2 * sizes.patch_size,
        },
    }
    for name, source in places.items():

        def wait(source: dict[str, Any] = source) -> Row:
            section = {"name": "TrainSet", **source, **batches}
            options = setting.training(
                "loading_S1",
                *("val:val_freq=~", "train:precision=bf16", f"train:total_iter={steps}"),
                f"datasets:train={json.dumps(section)}",
            )
            trainer = Trainer(options, setting.processes, dry=True)
            with precision(trainer.model, "bf16"):
                report = measure_phase(trainer, 0, sizes.loaded_steps)
            trainer.batches.close()
            return {
                "step [ms]": 1e3 * report.seconds,
                "waiting": report.waiting,
                "loader processes": workers,
            } | ({"error": report.problem} if report.problem else {})

        yield attempt({"data": name, "crops": sizes.loaded}, wait)
        free()
