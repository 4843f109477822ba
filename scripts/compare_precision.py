"""Train the same experiment in two precisions and compare losses and restored images.

    python scripts/compare_precision.py -opt options/train/GoPro_S1.yml --steps 500

Both runs read the same crops in the same order. Reported are the difference of their loss curves,
averaged over windows of 50 steps, and of the PSNR of the validation images at the end, each run
restoring in its own precision. The runs are experiments like any other, NAME_fp32 and NAME_bf16.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from torch import Tensor

from hidiff.engine.benchmark import machine_name
from hidiff.engine.distributed import Processes, start_processes
from hidiff.engine.trainer import Trainer
from hidiff.errors import UserError, friendly_errors
from hidiff.options import Options, load_options

WINDOW = 50
"""Steps whose mean loss is one point of a curve."""


class RecordingTrainer(Trainer):
    """Keeps the loss of every step."""

    def __init__(self, options: Options, processes: Processes) -> None:
        super().__init__(options, processes)
        self.curve: list[float] = []

    def _report(self, losses: dict[str, Tensor], grad_norm: float) -> None:
        self.curve.append(sum(losses.values()).item())
        super()._report(losses, grad_norm)


def train(args: argparse.Namespace, precision: str) -> dict[str, Any]:
    """Train in a precision; the loss of each step and the metrics of the validation sets."""
    name = load_options(args.opt, args.force_yml).name
    options = load_options(
        args.opt,
        [
            *args.force_yml,
            f"name={name}_{precision}",
            f"train:precision={precision}",
            f"train:total_iter={args.steps}",
            f"val:precision={precision}",
            f"val:val_freq={args.steps}",
            f"logger:save_checkpoint_freq={args.steps}",
        ],
    )
    with start_processes(options, "none") as processes:
        trainer = RecordingTrainer(options, processes)
        trainer.run()
        scores = {name: best["value"] for name, best in trainer.validator.best.items()}
        machine = machine_name(processes.device)
        return {"losses": trainer.curve, "scores": scores, "machine": machine}


def windows(curve: list[float]) -> list[float]:
    """Means of consecutive windows; a shorter rest is left out."""
    size = min(WINDOW, len(curve))
    return [sum(curve[i : i + size]) / size for i in range(0, len(curve) - size + 1, size)]


def compare(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Relative differences of the loss windows, and differences of the scores."""
    (first, a), (second, b) = runs.items()
    pairs = list(zip(windows(a["losses"]), windows(b["losses"]), strict=True))
    differences = [abs(y - x) / x for x, y in pairs]
    return {
        "precisions": [first, second],
        "machine": a["machine"],
        "steps": len(a["losses"]),
        "loss_windows": {first: [x for x, _ in pairs], second: [y for _, y in pairs]},
        "largest_loss_difference": max(differences),
        "mean_loss_difference": sum(differences) / len(differences),
        "scores": {first: a["scores"], second: b["scores"]},
        "score_difference": {key: b["scores"][key] - a["scores"][key] for key in a["scores"]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-opt", type=Path, required=True, metavar="FILE", help="option file")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--precisions", nargs=2, default=("fp32", "bf16"), metavar="NAME")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument(
        "--force_yml", nargs="+", default=[], metavar="OPTION=VALUE", help="as for train.py"
    )
    args = parser.parse_args()
    with friendly_errors():
        if len(set(args.precisions)) < 2:
            raise UserError("--precisions: name two different ones, for example fp32 bf16")
        result = compare({name: train(args, name) for name in args.precisions})
        if args.output:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        first, second = result["precisions"]
        for number, (x, y) in enumerate(zip(*result["loss_windows"].values(), strict=True)):
            print(f"window {number + 1}: loss {first} {x:.6f}, {second} {y:.6f} ({y / x - 1:+.3%})")
        print(f"largest difference of a window: {result['largest_loss_difference']:.3%}")
        for key, difference in result["score_difference"].items():
            values = [result["scores"][name][key] for name in (first, second)]
            print(f"{key}: {first} {values[0]:.4f}, {second} {values[1]:.4f} ({difference:+.4f})")


if __name__ == "__main__":
    main()
