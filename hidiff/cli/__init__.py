"""The command `hidiff`: one module a subcommand, each with a `main` that returns an exit code."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from hidiff.errors import friendly_errors

COMMANDS = {
    "score": "score result folders of GoPro and HIDE",
    "prepare": "bring downloaded data sets into the layout, make databases",
    "check": "check data sets before training",
    "report": "write the paper's tables with your figures",
    "ablation": "train and score a list of option files with one budget",
    "complexity": "count parameters and multiply-accumulates",
    "benchmark": "measure speed against the plain formulas",
}
"""Subcommands, each a module of this package, and what they do."""


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
    # Importing PyTorch takes seconds, so only what is asked for is imported.
    module = importlib.import_module(f"hidiff.cli.{args.command}")
    with friendly_errors():
        return module.main(args.arguments)


def run(*command: str) -> None:
    """Be the program of one subcommand, as train.py is `hidiff train`."""
    raise SystemExit(main([*command, *sys.argv[1:]]))
