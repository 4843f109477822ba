"""Train a model on with your own pairs, and see on held-out ones whether that has helped.

    hidiff finetune --data DIR                      # from the model that comes with the package
    hidiff finetune --data DIR --weights NAME -o mine --steps 5000

DIR holds folders of blurry and of sharp images with the same names: input and target, blur and
sharp, or lq and gt; within test and train, or in a folder for each scene, where there are such.
Whole scenes are held out. Pairs that do not lie on each other are named and left out.
"""

from __future__ import annotations

import argparse
import os
import re

from hidiff.cli.arguments import add_overrides
from hidiff.utils.errors import UserError, expanded, require_positive

EPILOG = (
    "Exit code: 0 the held-out pairs are better than before, 1 they are not, 2 a "
    "mistake in the call, 75 stopped: the same call goes on."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of pairs")
    parser.add_argument(
        "--weights",
        default="bundled",
        metavar="MODEL",
        help="what to start from: a stage 2's name or folder, or a file packed with --for-training "
        "(default: bundled, the model that comes with the package)",
    )
    parser.add_argument(
        "-o", "--output", metavar="NAME", help="of the experiment; default: MODEL_finetuned"
    )
    parser.add_argument("--steps", type=int, default=2000, help="default: %(default)s")
    parser.add_argument(
        "--lr", type=float, default=5e-5, help="learning rate at first; default: %(default)s"
    )
    held_out = parser.add_mutually_exclusive_group()
    held_out.add_argument(
        "--test", nargs="+", default=[], metavar="SCENE", help="scenes (or pairs) to hold out"
    )
    held_out.add_argument(
        "--held_out",
        type=int,
        metavar="N",
        help="hold out the last N pairs by name, whatever scene they show",
    )
    parser.add_argument("--seed", type=int, default=100, help="default: %(default)s")
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code.

    Raises:
        UserError: a mistake in the call, the pairs or the model.
        Interrupted: the training was stopped and can go on.
    """
    from hidiff.engine.logger import start_logging
    from hidiff.report.finetune_run import Asked, files_of, finetune, plan
    from hidiff.utils.distributed import start_processes
    from hidiff.weights.find import find_model

    least = {"--steps": args.steps, "--lr": args.lr}
    require_positive(**least, **({} if args.held_out is None else {"--held_out": args.held_out}))
    name = (
        args.output
        or f"{re.sub(r'[^A-Za-z0-9.+_-]', '_', find_model(args.weights).name)}_finetuned"
    )
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(
            "hidiff finetune is one process; start it alone, stop it, and train on several GPUs "
            f"with train.py -opt {files_of(name)}/{name}.yml --auto_resume"
        )
    start_logging(is_main=True)
    asked = Asked(
        data=expanded(args.data),
        weights=args.weights,
        steps=args.steps,
        lr=args.lr,
        test=args.test,
        held_out=args.held_out,
        seed=args.seed,
        overrides=args.force_yml,
    )
    options = plan(asked, name)
    with start_processes("none", **options.launch_arguments) as processes:
        return 0 if finetune(options, processes) else 1
