"""The command `hidiff`: one module a subcommand, each with a `main` that returns an exit code."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from hidiff.utils.errors import friendly_errors

COMMANDS = {
    "restore": "restore your own photographs",
    "train": "train one stage",
    "finetune": "train a model on with your own pairs, and see whether it helps",
    "test": "restore and score test sets",
    "score": "score folders of restored pictures",
    "compare": "compare models and folders of pictures on one data set",
    "prepare": "bring downloaded data sets into the layout, make databases",
    "check": "check data sets before training",
    "report": "write the paper's tables with your figures",
    "pack": "put a trained model into one file",
    "unpack": "take a packed file apart into weights files and an option file",
    "info": "say what is known about a model",
    "ablation": "train and score a list of option files with one budget",
    "complexity": "count parameters and multiply-accumulates",
    "benchmark": "measure speed against the plain formulas",
}
"""Subcommands, each a module of this package (with _ for -), and what they do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns its exit code.

    Args:
        arguments: its name and its arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(
        prog="hidiff",
        description="HI-Diff image deblurring. 'hidiff COMMAND --help' says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"  {name:12}{text}" for name, text in COMMANDS.items()),
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the command")
    args = parser.parse_args(arguments)
    # Importing PyTorch takes seconds, which --help need not wait for.
    from hidiff.utils.distributed import record

    module = importlib.import_module(f"hidiff.cli.{args.command.replace('-', '_')}")

    @record  # torchrun then shows the traceback of the process that failed first
    def call() -> int:
        with friendly_errors():
            return module.main(args.arguments)

    return call() or 0


def run(*command: str) -> None:
    """Be the program of one subcommand, as train.py is `hidiff train`."""
    raise SystemExit(main([*command, *sys.argv[1:]]))
