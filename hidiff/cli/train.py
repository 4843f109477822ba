"""Train one stage of HI-Diff: hidiff train -opt options/train/GoPro_S1.yml."""

from __future__ import annotations

import argparse
from contextlib import closing
from typing import TYPE_CHECKING

from hidiff.cli.arguments import add_launcher, add_option_file, at_least_one

if TYPE_CHECKING:
    from hidiff.options import Options

DEBUG_FREQUENCY = 8
"""Steps between validations and checkpoints with --debug."""


def for_debugging(options: Options) -> Options:
    """The same experiment as `debug_{name}`, logging, saving and validating all the time."""
    logger = {"print_freq": 1, "save_checkpoint_freq": DEBUG_FREQUENCY}
    return options.model_copy(
        update={
            "name": f"debug_{options.name}",
            "logger": options.logger.model_copy(update=logger),
            "val": options.val.model_copy(update={"val_freq": DEBUG_FREQUENCY}),
        }
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_option_file(parser)
    add_launcher(parser)
    add = parser.add_argument
    text = "continue the experiment from its newest training state, if there is one"
    add("--auto_resume", action="store_true", help=text)
    text = "go on although options have changed that change the result; they are listed"
    add("--allow_changed_options", action="store_true", help=text)
    text = "train as debug_NAME, logging every step; an earlier debug run is set aside"
    add("--debug", action="store_true", help=text)
    text = "check everything and measure each phase, without training; nothing is written"
    add("--dry_run", action="store_true", help=text)
    text = "write a trace of so many steps to results/profile/NAME, without training"
    add("--profile", type=at_least_one, metavar="STEPS", help=text)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from hidiff.engine.dry_run import dry_run
    from hidiff.engine.profile import profile
    from hidiff.engine.trainer import Trainer
    from hidiff.models.precision import precision
    from hidiff.options import load_options
    from hidiff.utils.distributed import start_processes
    from hidiff.utils.files import archive, lock_folder
    from hidiff.weights.experiment import Experiment

    options = load_options(args.opt, args.force_yml)
    if args.debug:
        options = for_debugging(options)
    with start_processes(args.launcher, **options.launch_arguments) as processes:
        how = {"auto_resume": args.auto_resume, "allow_changed_options": args.allow_changed_options}
        if args.dry_run or args.profile:
            trainer = Trainer(options, processes, **how, dry=True)
            with (
                closing(trainer.batches),
                precision(trainer.model, trainer.train_options.precision),
            ):
                call = args.call.replace(" --dry_run", "").replace(" --dry-run", "")
                if args.profile:
                    profile(trainer, args.profile)
                    return 0
                return 0 if dry_run(trainer, call) else 1
        folder = Experiment(options.name).folder
        if args.debug and not args.auto_resume:
            lock_folder(folder, processes)
            if processes.is_main and folder.exists():
                archive(folder)
            processes.barrier()
        Trainer(options, processes, **how).run()
    return 0
