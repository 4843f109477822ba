"""Train the same experiment in two precisions and compare losses and restored images.

    python scripts/compare_precision.py -opt options/train/GoPro_S1.yml --steps 500

Both runs read the same crops in the same order. Reported are the difference of their loss curves,
averaged over windows of 50 steps, and of the PSNR of the validation images at the end, each run
restoring in its own precision. The runs are experiments like any other, NAME_fp32 and NAME_bf16.

Two runs that differ by rounding alone drift apart too. With --control a third one, NAME_control,
has the first one's precision and weights changed by one part in a million, to tell how much.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hidiff.cost.timing import machine_name
from hidiff.engine.distributed import Processes, start_processes
from hidiff.engine.trainer import Trainer
from hidiff.errors import UserError, friendly_errors
from hidiff.files import write_text
from hidiff.models import DeblurModel
from hidiff.options import Options, load_options
from hidiff.weights.experiment import Experiment

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
        self.curve.append(sum(losses.values()).item())
        return losses, images


def perturb(model: DeblurModel) -> None:
    """Change every weight that is trained by about one part in a million."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for network in model.trained_networks().values():
            for parameter in network.parameters():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.mul_(1 + PERTURBATION * noise)


def options_of(args: argparse.Namespace, label: str, precision: str) -> Options:
    """The option file's content for a run in a precision.

    Raises:
        UserError: a mistake in the options, or there is an experiment of that name.
    """
    name = load_options(args.opt, args.force_yml).name
    options = load_options(
        args.opt,
        [
            *args.force_yml,
            f"name={name}_{label}",
            f"train:precision={precision}",
            f"train:total_iter={args.steps}",
            f"val:precision={precision}",
            f"val:val_freq={args.steps}",
            f"logger:save_checkpoint_freq={args.steps}",
        ],
    )
    folder = Experiment(options.name).folder
    if folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"{folder} holds an experiment already; choose another name (--force_yml "
            f"name={name}_b) or move the folder away"
        )
    return options


def train(options: Options, label: str) -> dict[str, Any]:
    """Train one run; the loss of each step and the metrics of the validation sets."""
    with start_processes(options, "none") as processes:
        trainer = RecordingTrainer(options, processes)
        if label == "control":
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


def show(result: dict[str, Any]) -> None:
    """Print the comparison."""
    first, *others = result["loss_windows"]
    for number, loss in enumerate(result["loss_windows"][first]):
        parts = [f"{label} {result['loss_differences'][label][number]:+.3%}" for label in others]
        print(f"window {number + 1}: loss of {first} {loss:.6f}; {', '.join(parts)}")
    for label in others:
        sizes = [abs(difference) for difference in result["loss_differences"][label]]
        print(f"{label}: windows differ by {sum(sizes) / len(sizes):.3%}, at most {max(sizes):.3%}")
        for key, value in result["scores"][label].items():
            change = result["score_differences"][label][key]
            print(f"{label}: {key} {value:.4f}, {change:+.4f} against {first}")


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit code.

    Raises:
        UserError: a mistake in the call, the options or the data.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-opt", type=Path, required=True, metavar="FILE", help="option file")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--precisions", nargs=2, default=("fp32", "bf16"), metavar="NAME")
    parser.add_argument("--control", action="store_true", help="train the control too")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument(
        "--force_yml", nargs="+", default=[], metavar="OPTION=VALUE", help="as for train.py"
    )
    args = parser.parse_args(arguments)
    if len(set(args.precisions)) < 2:
        raise UserError("--precisions: name two different ones, for example fp32 bf16")
    precisions = {name: name for name in args.precisions}
    if args.control:
        precisions["control"] = args.precisions[0]
    # All of them before the first one trains.
    runs = {label: options_of(args, label, p) for label, p in precisions.items()}
    result = compare({label: train(options, label) for label, options in runs.items()})
    if args.output:
        write_text(args.output, json.dumps(result, indent=2) + "\n")
    show(result)
    return 0


if __name__ == "__main__":
    with friendly_errors():
        raise SystemExit(main())
