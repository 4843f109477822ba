"""The same training in several precisions: loss curves and scores against each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hidiff.cost.timing import machine_name
from hidiff.engine.distributed import Processes
from hidiff.engine.trainer import Trainer
from hidiff.models import DeblurModel
from hidiff.options import Options

WINDOW = 50
"""Steps whose mean loss is one point of a curve."""


PERTURBATION = 1e-6
"""Relative change of the control's first weights: some units in the last place of float32."""


class RecordingTrainer(Trainer):
    """Keeps the loss of every step."""

    def __init__(self, options: Options, processes: Processes) -> None:
        super().__init__(options, processes)
        self.curve: list[float] = []

    def _accumulate(self, step: int) -> tuple[dict[str, Tensor], list[str]]:
        losses, images = super()._accumulate(step)
        self.curve.append(float(sum(losses.values())))
        return losses, images


def perturb(model: DeblurModel) -> None:
    """Change every weight that is trained by about one part in a million."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for network in model.trained_networks().values():
            for parameter in network.parameters():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.mul_(1 + PERTURBATION * noise)


def train(options: Options, processes: Processes, *, perturbed: bool = False) -> dict[str, Any]:
    """Train one run; the loss of each step and the metrics of the validation sets."""
    trainer = RecordingTrainer(options, processes)
    if perturbed:
        perturb(trainer.model)
    trainer.run()
    scores = {name: best["value"] for name, best in trainer.state.best.items()}
    machine = machine_name(processes.device)
    return {"losses": trainer.curve, "scores": scores, "machine": machine}


def windows(curve: list[float]) -> list[float]:
    """Means of consecutive windows; a shorter rest is left out."""
    size = min(WINDOW, len(curve))
    return [sum(curve[i : i + size]) / size for i in range(0, len(curve) - size + 1, size)]


def compare(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Each run against the first: relative difference of loss windows, difference of scores."""
    first, *others = runs
    curves = {label: windows(run["losses"]) for label, run in runs.items()}
    differences = {
        label: [y / x - 1 for x, y in zip(curves[first], curves[label], strict=True)]
        for label in others
    }
    return {
        "machine": runs[first]["machine"],
        "steps": len(runs[first]["losses"]),
        "loss_windows": curves,
        "loss_differences": differences,
        "scores": {label: run["scores"] for label, run in runs.items()},
        "score_differences": {
            label: {k: runs[label]["scores"][k] - v for k, v in runs[first]["scores"].items()}
            for label in others
        },
    }
