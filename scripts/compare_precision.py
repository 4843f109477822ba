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

from hidiff.benchmark.precisions import compare, train
from hidiff.engine.distributed import start_processes
from hidiff.errors import UserError, friendly_errors
from hidiff.files import write_text
from hidiff.options import Options, load_options
from hidiff.weights.experiment import Experiment


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
    results = {}
    for label, options in runs.items():
        with start_processes(options, "none") as processes:
            results[label] = train(options, processes, perturbed=label == "control")
    result = compare(results)
    if args.output:
        write_text(args.output, json.dumps(result, indent=2) + "\n")
    show(result)
    return 0


if __name__ == "__main__":
    with friendly_errors():
        raise SystemExit(main())
