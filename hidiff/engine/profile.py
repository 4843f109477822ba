"""Where the time of training steps goes."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

from hidiff.engine.speed import WARM_UP
from hidiff.engine.trainer import Trainer
from hidiff.utils.files import archive
from hidiff.weights.experiment import RESULTS

LOG = logging.getLogger("hidiff")

MOST = 10
"""Operations that are named."""


def profile(trainer: Trainer, steps: int) -> Path:
    """Write a trace of some steps, and say which operations take the most time.

    The file is `results/profile/NAME/trace.json`, for https://ui.perfetto.dev or TensorBoard. What
    is there already is set aside. The first steps are not in it.

    Args:
        trainer: built with `dry`; its model is another one afterwards.
        steps: 1 or more.

    Raises:
        UserError: a step fails, see `Trainer.train_step`.
    """
    device, first = trainer.processes.device, trainer.state.step + 1
    for step in range(first, first + WARM_UP):
        trainer.train_step(step)
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as recorded:
        for step in range(first + WARM_UP, first + WARM_UP + steps):
            trainer.train_step(step)
    folder = RESULTS / "profile" / trainer.options.name
    if not trainer.processes.is_main:
        return folder
    if folder.exists():
        archive(folder)
    folder.mkdir(parents=True)
    recorded.export_chrome_trace(str(folder / "trace.json"))
    kind = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    LOG.info(recorded.key_averages().table(sort_by=kind, row_limit=MOST))
    LOG.info("the trace is %s", folder / "trace.json")
    return folder
