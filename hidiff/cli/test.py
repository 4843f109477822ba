"""Restore and score test images: hidiff test -opt options/test/GoPro.yml."""

from __future__ import annotations

import argparse

from hidiff.cli.arguments import add_launcher, add_option_file, at_least_one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_option_file(parser)
    add_launcher(parser)
    parser.add_argument(
        "--seeds",
        type=at_least_one,
        default=1,
        metavar="K",
        help="restore each image K times from other noise; report mean and standard deviation",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with an earlier call of the same test that was ended before all images were "
        "done; images that failed are tried again",
    )
    parser.add_argument(
        "--weights",
        metavar="NAME",
        help="test the newest weights of a training: its name, its folder or one with net_*.pth; "
        "the same as --force_yml path:weights=NAME",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code.

    Raises:
        UserError: anything in the options, the data or the weights that a person must mend.
    """
    from hidiff.engine.logger import start_logging
    from hidiff.evaluation.test_run import run_test
    from hidiff.options import load_options
    from hidiff.utils.distributed import start_processes

    if args.weights:
        args.force_yml.append(f"path:weights={args.weights}")
    options = load_options(args.opt, args.force_yml)
    with start_processes(args.launcher, **options.launch_arguments) as processes:
        start_logging(is_main=processes.is_main)
        complete = run_test(options, processes, seeds=args.seeds, resume=args.resume)
    # Damaged images are in the table; the exit code tells a script about them.
    return 0 if complete else 1
