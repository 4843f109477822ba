"""The one exception class for mistakes that a person can mend."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hidiff.console import keep_console


class UserError(ValueError):
    """Something in the options, the data or the files that the user can put right.

    The message says what was wrong, where, and what to do. The command-line programs print it
    without a traceback and leave with exit code 2.
    """


class Interrupted(Exception):
    """A run was asked to stop before its end, and has saved what it needs to go on."""


EXIT_INTERRUPTED = 75
"""Exit code of an interrupted run: EX_TEMPFAIL of sysexits.h, "try again later"."""


def counted_from(path: str | os.PathLike[str]) -> str:
    """For messages about a path that does not exist: where it counts from, if relative."""
    return "" if Path(path).is_absolute() else f" (relative paths count from {Path.cwd()})"


def missing(path: str | os.PathLike[str]) -> str:
    """'{path} does not exist', and where it counts from."""
    return f"{path} does not exist{counted_from(path)}"


def require_positive(least: float = 1, /, **values: float) -> None:
    """Refuse options below a limit: whole numbers below `least`, others not above 0.

    Raises:
        UserError: a value is too small; the message has its name.
    """
    for name, value in values.items():
        if value < least if isinstance(value, int) else not value > 0:
            limit = f"at least {least}" if isinstance(value, int) else "above 0"
            raise UserError(f"{name} {value} must be {limit}")


@contextmanager
def friendly_errors() -> Iterator[None]:
    """Turn a `UserError`, a stop or Ctrl-C into a message on standard error and an exit code.

    Exit codes: 2 for a `UserError`, 75 for a run that was stopped and can go on, 130 for Ctrl-C
    elsewhere. Any other exception is a defect of this project and keeps its traceback. A console
    that is lost ends nothing (`keep_console`).
    """
    keep_console()
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
