"""The command `hidiff`: one module a subcommand, with `add_arguments(parser)` and `run(args)`."""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from hidiff import __version__
from hidiff.utils.errors import UserError, friendly_errors, suggestion

COMMANDS = {
    "restore": "restore your own photographs",
    "download": "bring published weights and data sets",
    "train": "train one stage",
    "finetune": "train a model on with your own pairs, and see whether it helps",
    "test": "restore and score test sets",
    "score": "score folders of restored pictures",
    "prepare": "bring downloaded data sets into the layout, or make data",
    "check": "check data sets before training",
    "report": "put scores into one table, beside the paper's",
    "options": "list the option files, copy one, or explain all options",
    "pack": "put a trained model into one file",
    "unpack": "take a packed file apart into weights files and an option file",
    "info": "say what is known about a model",
    "ablation": "train and test option files over several seeds",
    "app": "serve a page on this machine to drop photographs on",
    "export": "write a model as one ONNX file",
    "complexity": "count parameters and multiply-accumulates",
    "benchmark": "measure time and memory",
}
"""Subcommands, each a module of this package, and what they do."""


class Parser(argparse.ArgumentParser):
    """An argument parser that takes `--dry-run` and `--dry_run` alike and knows near misses."""

    def __init__(self, **options: Any) -> None:
        # Examples in descriptions stay as they are; an abbreviated flag may get another meaning.
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**{**options, "allow_abbrev": False})

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Parse what is known; see `argparse.ArgumentParser.parse_known_args`."""
        words = sys.argv[1:] if args is None else list(args)
        flags = {_same(flag): flag for flag in self._option_string_actions}
        names = [word.partition("=") for word in words]
        words = [flags.get(_same(flag), flag) + equals + rest for flag, equals, rest in names]
        if not any(isinstance(a, argparse._SubParsersAction) for a in self._actions):
            for flag, _, _ in names:  # before a required argument is missed
                if flag.startswith("--") and _same(flag) not in flags:
                    self._refuse(flag)
        return super().parse_known_args(words, namespace)

    def parse_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Parse everything; an unknown flag or word ends the program with exit code 2."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = getattr(parsed, "parser", self)
            parser._refuse(next((word for word in unknown if word.startswith("-")), unknown[0]))
        return parsed

    def _refuse(self, word: str) -> NoReturn:
        flags = [flag for flag in self._option_string_actions if flag != "-h"]
        hint = suggestion(word, flags) if word.startswith("-") else ""
        self.error(f"{word} is not an argument of {self.prog}{hint}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            message = f"'{value}' is none of its values{suggestion(str(value), action.choices)}"
            raise argparse.ArgumentError(action, message)

    def error(self, message: str) -> NoReturn:
        """Refuse the call; a mistake of one line is not drowned in the usage.

        Raises:
            UserError: always.
        """
        raise UserError(f"{message}\n'{self.prog} --help' says more")


def _same(flag: str) -> str:
    """One spelling of a long flag: `--dry_run` and `--dry-run` are the same."""
    return flag.replace("_", "-") if flag.startswith("--") else flag


def _asked_command(arguments: Sequence[str]) -> str | None:
    """The first word that is no flag."""
    return next((word for word in arguments if not word.startswith("-")), None)


def build_parser(command: str | None) -> Parser:
    """The whole command line; only the module of `command` is imported and has its arguments."""
    parser = Parser(
        prog="hidiff", description="HI-Diff image deblurring. 'hidiff COMMAND --help' says more."
    )
    parser.add_argument("--version", action="version", version=f"hidiff {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text)
        if name == command:
            module = importlib.import_module(f"hidiff.cli.{name}")
            sub.description = module.__doc__
            sub.epilog = getattr(module, "EPILOG", None)
            module.add_arguments(sub)
            sub.set_defaults(run=module.run, parser=sub)
    return parser


def call(*arguments: str, program: str = "hidiff") -> int:
    """Run a subcommand; returns its exit code.

    Args:
        arguments: its name and its arguments.
        program: what was called, for `args.call`, the command line as a shell takes it.

    Raises:
        UserError: a mistake in the call or in what it names.
        Interrupted: a run was stopped and can go on.
    """
    command = _asked_command(arguments)
    parser = build_parser(command)
    if command is not None and command not in COMMANDS:
        parser.error(f"there is no command '{command}'{suggestion(command, COMMANDS)}")
    args = parser.parse_args(arguments)
    args.call = f"{program} {shlex.join(arguments)}"
    return args.run(args) or 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand as a program; returns its exit code.

    Args:
        arguments: its name and its arguments; those of the process by default.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    with friendly_errors():
        if "TORCHELASTIC_ERROR_FILE" not in os.environ:
            return call(*words)
        from hidiff.utils.distributed import record

        # torchrun shows the traceback of the process that failed first.
        return record(call)(*words) or 0


def run(*command: str) -> NoReturn:
    """Be the program of one subcommand, as train.py is `hidiff train`."""
    raise SystemExit(main([*command, *sys.argv[1:]]))
