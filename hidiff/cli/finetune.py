"""Train a model on with your own pairs, and see on held-out ones whether that has helped.

    hidiff finetune --data DIR                      # from the bundled model
    hidiff finetune --data DIR --model NAME -o mine --steps 5000

DIR holds pairs in any layout that is known: input and target, blur and sharp, or lq and gt; scenes
as folders. The folders test, val, valid and validation are held out; without them, whole scenes
are. Misaligned pairs are listed and skipped. options/finetune.yml has the other options.
"""

from __future__ import annotations

import argparse
import math
import os
import re

from hidiff.cli.arguments import add_model, add_overrides, at_least_one
from hidiff.utils.errors import UserError, expanded

EPILOG = (
    "Exit code: 0 the held-out pairs are better than before, 1 they are not, 2 a "
    "mistake in the call, 75 stopped: the same call goes on."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="folder of pairs")
    add_model(parser, default="bundled")
    text = "of the experiment; default: MODEL_finetuned"
    add("-o", "--output", metavar="NAME", help=text)
    add("--steps", type=at_least_one, default=2000, help="default: %(default)s")
    add("--lr", type=float, default=5e-5, help="learning rate at first; default: %(default)s")
    add("--seed", type=int, default=100, help="default: %(default)s")
    held_out = parser.add_mutually_exclusive_group()
    text = "scenes (or pairs) to hold out"
    held_out.add_argument("--test", nargs="+", default=[], metavar="SCENE", help=text)
    text = "hold out the last N pairs by name, whatever scene they show"
    held_out.add_argument("--held_out", type=at_least_one, metavar="N", help=text)
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from hidiff.engine.logger import start_logging
    from hidiff.engine.trainer import Trainer
    from hidiff.prepare.finetune import finetune_folder, pack_result, plan, score
    from hidiff.utils.distributed import start_processes
    from hidiff.weights.experiment import Experiment
    from hidiff.weights.find import find_model

    if args.lr <= 0:
        raise UserError(f"--lr {args.lr:g} must be above 0")
    name = args.output
    if name is None:
        stem = re.sub(r"[^A-Za-z0-9.+_-]", "_", find_model(args.model).name)
        name = f"{stem}_finetuned"
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(
            "hidiff finetune is one process; start it alone, stop it, and train on several GPUs "
            f"with train.py -opt {finetune_folder(name)}/{name}.yml --auto_resume"
        )
    logger = start_logging(is_main=True)
    keys = ("model", "steps", "lr", "test", "held_out", "seed", "force_yml")
    options = plan({"data": expanded(args.data), **{k: getattr(args, k) for k in keys}}, name)
    with start_processes("none", **options.launch_arguments) as processes:
        before = score(options, f"{name}_before", args.model, processes)
        if before.failed:
            image, reason = next(iter(before.failed.items()))
            raise UserError(f"--model: the held-out image {image} has no score: {reason}")
        total_iter = options.for_training()[0].total_iter
        if not Experiment(name).model_file(total_iter).is_file():
            Trainer(options, processes, auto_resume=True).run()
        after = score(options, f"{name}_after", f"{name}@{total_iter}", processes)
    gain = after.mean().get("psnr", math.nan) - before.mean()["psnr"]
    # What a training that has diverged restores cannot even be scored.
    if not gain > 0 or after.failed:
        logger.error(
            "fine-tuning made it no better: %+.3f dB on the held-out pairs. No result is written; "
            "restore with the model that it started from, or try again with a lower --lr, more "
            "--steps or more pairs, and another -o",
            gain,
        )
        return 1
    result = pack_result(name, args.model, after)
    logger.info("%+.3f dB on the held-out pairs; the result: hidiff restore -m %s", gain, result)
    return 0
