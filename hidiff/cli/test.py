"""Restore and score test images.

hidiff test --model gopro --data datasets/GoPro/test      any model on any folder of pairs
hidiff test -opt options/test/GoPro.yml                   as an option file says
hidiff test -opt options/test/GoPro.yml --weights NAME    the same with the weights of a training
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hidiff.cli.arguments import (
    PROTOCOLS,
    add_data,
    add_launcher,
    add_option_file,
    add_overwrite,
    add_seeds,
)
from hidiff.utils.errors import UserError

if TYPE_CHECKING:
    from hidiff.options import Options

EPILOG = (
    "Written are results/NAME/visualization (pictures) and results/NAME/scores.json. The same call "
    "goes on where an earlier one has stopped, and tries failed images again. Exit code: 0 all "
    "images restored and scored, 1 some failed, 2 a mistake in the call."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add = parser.add_argument
    add_option_file(parser, required=False)
    text = (
        "a training's name (NAME, NAME@best, NAME@STEP), a model file or folder, a downloaded "
        "model's name or bundled; with -opt its weights take the place of the file's"
    )
    add("-m", "--model", "--weights", metavar="MODEL", help=text)
    add_data(parser, required=False)
    text = "of the scores of --data (default: that of the published scores, else basicsr)"
    add("--protocol", choices=PROTOCOLS, help=text)
    add("--name", help="of the folder in results (default: of model and data)")
    add_overwrite(parser, "move the results of another test aside")
    add_seeds(parser, "restore each image K times from other noise; report mean and deviation")
    add_launcher(parser)


def find_options(args: argparse.Namespace) -> Options:
    """The options of the call: those of the file, or made for --model and --data.

    Raises:
        UserError: neither or both are given, or something in them is wrong.
    """
    from hidiff.evaluation.test_run import options_for
    from hidiff.options import load_options
    from hidiff.weights.find import find_model

    if args.opt is not None:
        if args.data is not None or args.protocol is not None:
            raise UserError(
                "--data and --protocol go with --model; with -opt use --force_yml "
                "datasets:test_1:dataroot_lq=DIR and val:protocol=NAME"
            )
        given = {"path:weights": args.model, "name": args.name}
        extra = [f"{option}={value}" for option, value in given.items() if value is not None]
        return load_options(args.opt, [*args.force_yml, *extra])
    if args.model is None or args.data is None:
        raise UserError("name a model and a folder of pairs (--model, --data), or an option file")
    if args.force_yml:
        raise UserError("--force_yml changes an option file; name one with -opt")
    sections = find_model(args.model).options
    return options_for(args.model, sections, args.data, protocol=args.protocol, name=args.name)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from hidiff.engine.logger import start_logging
    from hidiff.evaluation.test_run import run_test
    from hidiff.utils.distributed import start_processes

    options = find_options(args)
    with start_processes(args.launcher, **options.launch_arguments) as processes:
        start_logging(is_main=processes.is_main)
        complete = run_test(options, processes, seeds=args.seeds, overwrite=args.overwrite)
    # Damaged images are in the table; the exit code tells a script about them.
    return 0 if complete else 1
