"""A training tried out: what every phase takes, and what would stop the run, without running it."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from hidiff.benchmark.timing import measure, peak_bytes, start_peak
from hidiff.data import BatchPlan
from hidiff.engine.checkpoint import KEPT_STATES
from hidiff.engine.speed import WARM_UP, duration
from hidiff.engine.trainer import Trainer
from hidiff.utils.errors import UserError
from hidiff.utils.tables import text_table
from hidiff.utils.workers import available_cores

STEPS = 8
"""Steps that are measured in each phase, after those that do not count."""

MUCH_WAITING = 0.1
"""Share of the time waited for data from which on something should be done."""

PROCESSES = (1, 2, 4, 8)
"""Numbers of processes whose time is told."""


@dataclass
class PhaseReport:
    """What one phase takes in this process.

    `seconds` is of a step, `waiting` the share of it that is waited for data, `peak` bytes (None
    where it cannot be told), `at_once` the images of a micro-batch. With a `problem` nothing was
    measured.
    """

    seconds: float = 0.0
    waiting: float = 0.0
    peak: int | None = None
    at_once: int | None = None
    problem: str | None = None


def dry_run(trainer: Trainer) -> bool:
    """Measure some steps of each phase and say what the training takes; whether it can run.

    The model of the trainer is another one afterwards.

    Args:
        trainer: built with `dry`; its building has checked options, data and weights.
    """
    log, plan, options = trainer.log, trainer.plan, trainer.options
    world_size = trainer.processes.world_size
    reports = [measure_phase(trainer, index) for index in range(len(plan.phases))]
    problems = [report.problem for report in reports if report.problem]
    samples = [phase.batch_size * plan.accumulation for phase in plan.phases]
    rows = [
        [
            f"{index}: {phase.iters} × {phase.batch_size}×{phase.patch_size}²",
            "failed" if report.problem else f"{report.seconds:.3g} s",
            ""
            if report.problem
            else f"{count * trainer.processes.world_size / report.seconds:.3g}",
            "" if report.problem else f"{report.waiting:.0%}",
            "" if report.peak is None else f"{report.peak / 2**30:.2f} GiB",
            str(report.at_once or ""),
        ]
        for index, (phase, report, count) in enumerate(
            zip(plan.phases, reports, samples, strict=True), start=1
        )
    ]
    header = ["phase", "step", "samples/s", "data", "memory", "at once"]
    for line in text_table(header, rows):
        log.info(line)
    if not problems:
        between = _between(trainer)
        steps = sum(p.iters * r.seconds for p, r in zip(plan.phases, reports, strict=True))
        log.info(
            "the training takes %s, %s of it for validations and checkpoints",
            *(duration(steps + between), duration(between)),
        )
        for line in _other_numbers(plan, reports, between, world_size):
            log.info(line)
    needed, free = _disk(trainer)
    sizes = f"{needed / 2**30:.2f} GiB of the disk, where {free / 2**30:.2f} GiB are free"
    log.info("checkpoints take %s", sizes)
    if needed > free:
        problems.append(
            f"{trainer.experiment.folder}: checkpoints take {sizes}; make room, or raise "
            "logger.save_checkpoint_freq"
        )
    for line in _suggestions(trainer, reports):
        log.info("suggestion: %s", line)
    problems = [p for part in trainer.processes.gather(problems) for p in part]
    for line in dict.fromkeys(problems):
        log.info("problem: %s", line)
    log.info("not ready" if problems else f"ready: python train.py -opt {options.file}")
    return not problems


def measure_phase(trainer: Trainer, index: int, steps: int = STEPS) -> PhaseReport:
    """Measure so many steps of a 0-based phase, after its first ones, or all that it has."""
    plan, device, speed = trainer.plan, trainer.processes.device, trainer.reporter.speed
    first = 1 + sum(phase.iters for phase in plan.phases[:index])
    trainer.batches.close()
    trainer.batches = trainer.load(first)
    start_peak(device)
    try:
        for step in range(first, first + min(WARM_UP + steps, plan.phases[index].iters)):
            if step == first + WARM_UP:
                speed.since_last()
            trainer.train_step(step)
    except UserError as error:
        if trainer.processes.world_size > 1:
            raise
        # The next phase is measured without them.
        trainer.model.zero_grad(set_to_none=True)
        return PhaseReport(problem=str(error))
    finally:
        trainer.batches.close()
    return PhaseReport(
        speed.seconds(index),
        speed.since_last()["waiting"],
        peak_bytes(device),
        trainer.micro_batches.size(index),
    )


def _between(trainer: Trainer) -> float:
    """Seconds of all validations and checkpoints: one image of each set is restored."""
    frequency, seconds = trainer.options.val.val_freq, 0.0
    if frequency is None:
        return seconds
    device = trainer.processes.device
    model = copy.deepcopy(trainer.model).eval()
    for dataset in trainer.validator.datasets.values():
        item = dataset[0]
        images: dict[str, Any] = {
            k: item[k][None].to(device, torch.float32) for k in ("lq", "gt") if k in item
        }
        model.restore(
            images["lq"][..., :64, :64], *[i[..., :64, :64] for i in [*images.values()][1:]]
        )
        times = -(-trainer.total_iter // frequency)
        share = len(dataset) / trainer.processes.world_size
        seconds += times * share * measure(partial(model.restore, **images), device)
    return seconds


def _other_numbers(
    plan: BatchPlan, reports: Sequence[PhaseReport], between: float, world_size: int
) -> list[str]:
    """How long the same global batches take with other numbers of such processes."""
    lines = []
    for count in PROCESSES:
        if count == world_size or plan.slots % count:
            continue
        faster = count / world_size
        steps = sum(p.iters * r.seconds for p, r in zip(plan.phases, reports, strict=True))
        lines.append(
            f"with {count} process{'es' if count > 1 else ''} like this one, their exchange not "
            f"counted: {duration((steps + between) / faster)}"
        )
    return lines


def _disk(trainer: Trainer) -> tuple[float, int]:
    """Bytes that all checkpoints take, and those that are free."""
    state, frequency = trainer.state, trainer.options.logger.save_checkpoint_freq
    trained = sum(
        tensor.nbytes
        for network in trainer.model.trained_networks().values()
        for tensor in network.state_dict().values()
    )
    everything = sum(tensor.nbytes for tensor in trainer.model.state_dict().values())
    moments = sum(
        value.nbytes
        for values in state.optimizer.state.values()
        for value in values.values()
        if isinstance(value, torch.Tensor)
    )
    copies = 2 if state.average else 1
    saved = -(-trainer.total_iter // frequency) * copies * trained
    states = KEPT_STATES * (everything + moments + (copies - 1) * trained)
    place = trainer.experiment.folder.absolute()
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    return saved + states, shutil.disk_usage(existing).free


def _suggestions(trainer: Trainer, reports: Sequence[PhaseReport]) -> list[str]:
    """What would make the run faster, or possible."""
    lines = []
    section = trainer.options.for_training()[1]
    if any(report.problem for report in reports) and trainer.train_options.micro_batch is None:
        lines.append("train.micro_batch: auto computes as many images at once as fit")
    waiting = max(report.waiting for report in reports)
    if waiting > MUCH_WAITING:
        cores = available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if section.num_worker_per_gpu < cores:
            lines.append(
                f"{waiting:.0%} of the time is waited for data: "
                f"datasets.train.num_worker_per_gpu: {cores} (now {section.num_worker_per_gpu})"
            )
        parts = section.mixture or (section,)
        if any("cache" in part.source and part.source["cache"] is None for part in parts):
            lines.append(
                f"{waiting:.0%} of the time is waited for data: datasets.train.cache: FOLDER keeps "
                "decoded images"
            )
    return lines
