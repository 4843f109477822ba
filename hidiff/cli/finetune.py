"""Train a model on with your own pairs, and see on held-out ones whether that has helped.

    hidiff finetune --data DIR                      # from the bundled model
    hidiff finetune --data DIR --model NAME -o mine --steps 5000

DIR holds pairs in any layout that is known: input and target, blur and sharp, or lq and gt; scenes
as folders. The folders test, val, valid and validation are held out; without them, whole scenes
are. Misaligned pairs are listed and skipped. options/finetune.yml has the other options.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import os
import re
from typing import TYPE_CHECKING

from hidiff.cli.arguments import add_model, add_overrides, at_least_one
from hidiff.utils.errors import UserError, expanded, require_positive

if TYPE_CHECKING:
    from hidiff.evaluation.record import Scores
    from hidiff.options import Options
    from hidiff.utils.distributed import Processes

EPILOG = (
    "Exit code: 0 the held-out pairs are better than before, 1 they are not, 2 a "
    "mistake in the call, 75 stopped: the same call goes on."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of pairs")
    add_model(parser, default="bundled")
    parser.add_argument(
        "-o", "--output", metavar="NAME", help="of the experiment; default: MODEL_finetuned"
    )
    parser.add_argument("--steps", type=at_least_one, default=2000, help="default: %(default)s")
    parser.add_argument(
        "--lr", type=float, default=5e-5, help="learning rate at first; default: %(default)s"
    )
    held_out = parser.add_mutually_exclusive_group()
    held_out.add_argument(
        "--test", nargs="+", default=[], metavar="SCENE", help="scenes (or pairs) to hold out"
    )
    held_out.add_argument(
        "--held_out",
        type=at_least_one,
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
    from hidiff.prepare.finetune import finetune_folder, plan
    from hidiff.utils.distributed import start_processes
    from hidiff.weights.find import find_model

    require_positive(**{"--lr": args.lr})
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
        before = _score(options, f"{name}_before", args.model, processes)
        if before.failed:
            image, reason = next(iter(before.failed.items()))
            raise UserError(f"--model: the held-out image {image} has no score: {reason}")
        model = _train(options, processes)
        after = _score(options, f"{name}_after", model, processes)
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
    result = _pack_result(name, args.model, after)
    logger.info("%+.3f dB on the held-out pairs; the result: hidiff restore -m %s", gain, result)
    return 0


def _train(options: Options, processes: Processes) -> str:
    """Train, unless that is done; the name of the model that results."""
    from hidiff.engine.trainer import Trainer
    from hidiff.weights.experiment import Experiment

    total_iter = options.for_training()[0].total_iter
    if not Experiment(options.name).model_file(total_iter).is_file():
        Trainer(options, processes, auto_resume=True).run()
    return f"{options.name}@{total_iter}"


def _score(options: Options, name: str, model: str, processes: Processes) -> Scores:
    """The scores of a model on the held-out pairs, in `results/{name}`."""
    from hidiff.evaluation.record import read_scores
    from hidiff.evaluation.test_run import run_test
    from hidiff.options import parse_options
    from hidiff.weights.experiment import RESULTS

    content = copy.deepcopy(dict(options.sections))
    content |= {"name": name, "path": {"weights": model}}
    run_test(parse_options(content, file=options.file), processes, overwrite=True)
    (scores,) = read_scores(RESULTS / name)
    return scores


def _pack_result(name: str, start: str, scores: Scores) -> str:
    """Write the model with its new scores to `experiments/{name}/{name}.safetensors`."""
    from hidiff.weights.experiment import MODEL_SUFFIX, Experiment
    from hidiff.weights.export import pack
    from hidiff.weights.find import find_model

    path = Experiment(name).folder / f"{name}{MODEL_SUFFIX}"
    model = find_model(name)
    licence = find_model(start).licence
    pack(dataclasses.replace(model, scores=[scores.row()], licence=licence), path, overwrite=True)
    return str(path)
