"""A training tried out: some steps of every phase through the real loop, and nothing is written."""

from __future__ import annotations

import logging
import time

from hidiff.engine.speed import WARM_UP, duration
from hidiff.engine.trainer import Trainer
from hidiff.utils.errors import UserError
from hidiff.utils.memory import peak_bytes
from hidiff.utils.tables import text_table

LOG = logging.getLogger("hidiff")

STEPS = 6
"""Steps that are tried in each phase; the first ones do not count."""

SAMPLED_IMAGES = 50
"""Images of the training set that are read as a whole, evenly spread; damage shows there."""


def dry_run(trainer: Trainer, call: str) -> bool:
    """Try the training, and say what it takes or what is wrong.

    Args:
        trainer: built with `dry`, which has checked options, data and weights. Its model is another
            one afterwards.
        call: the command line that trains, to be told where all is well.

    Returns:
        Whether it can run.
    """
    problems = damaged_images(trainer)
    rows, total = [], 0.0
    for index, phase in enumerate(trainer.plan.phases):
        what = f"{index + 1}: {phase.iters} × {phase.batch_size}×{phase.patch_size}²"
        try:
            seconds, waiting = try_phase(trainer, index)
        except UserError as error:
            if trainer.processes.world_size > 1:
                raise  # the others wait within the step
            problems.append(str(error))
            rows.append([what, "failed", "", "", ""])
            continue
        total += seconds * phase.iters
        peak = peak_bytes(trainer.processes.device)
        memory = "" if peak is None else f"{peak / 2**30:.2f} GiB"
        at_once = str(trainer.micro_batches.size(index))
        rows.append([what, f"{seconds:.3g} s", f"{waiting:.0%}", memory, at_once])
    header = ["phase", "a step", "waiting for data", "peak memory so far", "images at once"]
    for line in text_table(header, rows):
        LOG.info(line)
    problems = [problem for part in trainer.processes.gather(problems) for problem in part]
    for problem in dict.fromkeys(problems):
        LOG.info("problem: %s", problem)
    if problems:
        LOG.info("not ready")
        return False
    LOG.info("about %s without validations and checkpoints; ready: %s", duration(total), call)
    return True


def damaged_images(trainer: Trainer) -> list[str]:
    """What cannot be read of a sample of the training pairs, and of one pair of each other set."""
    problems = []
    others = trainer.validator.datasets.values()
    for dataset, most in [(trainer.dataset, SAMPLED_IMAGES), *((other, 1) for other in others)]:
        for index in range(0, len(dataset), -(-len(dataset) // most)):
            try:
                dataset[index]
            except UserError as error:
                problems.append(str(error))
    return problems


def try_phase(trainer: Trainer, index: int) -> tuple[float, float]:
    """Take some steps of a 0-based phase.

    Returns:
        Seconds of a step, and the share of them that was spent waiting for data.

    Raises:
        UserError: a step fails.
    """
    phases = trainer.plan.phases
    first = 1 + sum(phase.iters for phase in phases[:index])
    last = min(first + STEPS, first + phases[index].iters, trainer.total_iter + 1) - 1
    trainer.batches.close()
    trainer.batches = trainer.load(first)
    started, waited = time.perf_counter(), 0.0
    counted = last - first + 1
    try:
        for step in range(first, last + 1):
            trainer.train_step(step)
            if step == first + WARM_UP - 1 < last:
                started, waited = time.perf_counter(), trainer.batches.waited
                counted = last - step
    finally:
        trainer.model.zero_grad(set_to_none=True)
        trainer.batches.close()
    seconds = time.perf_counter() - started
    return seconds / counted, (trainer.batches.waited - waited) / seconds
