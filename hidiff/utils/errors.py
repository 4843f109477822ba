"""Mistakes that a person can mend, memory that is used up, and the exit codes of programs."""

from __future__ import annotations

import difflib
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


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


def suggestion(name: str, known: Iterable[str]) -> str:
    """'; did you mean …?' for a misspelled name, or the list of the known ones."""
    known = sorted(known)
    by_lower = {other.lower(): other for other in reversed(known)}
    lower = str(name).lower()
    close = difflib.get_close_matches(lower, by_lower, n=1, cutoff=0.6)
    # 'psnr' is meant by nobody but for 'calculate_psnr'.
    close = close or [other for other in by_lower if len(lower) > 2 and lower in other][:1]
    if close:
        return f"; did you mean '{by_lower[close[0]]}'?"
    return f"; known: {', '.join(known)}" if known else ""


def expanded(path: str) -> str:
    """A path with `~` and `$HOME` (or another variable) replaced."""
    # pathlib would fail where a user is unknown; this leaves the text as it is.
    return os.path.expanduser(os.path.expandvars(path))  # noqa: PTH111


_BIDIRECTIONAL = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def printable(text: object, *, keep_lines: bool = False) -> str:
    """A text from outside (a file's name, metadata) without what controls a terminal.

    Control characters, separators of lines, marks of the writing direction and parts of file names
    that are no UTF-8 are written as escapes such as \\x1b.

    Args:
        text: what is to be printed.
        keep_lines: leave the ends of lines as they are.
    """

    def shown(character: str) -> str:
        if character == "\t" or (keep_lines and character == "\n"):
            return character
        controls = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        if controls or character in _BIDIRECTIONAL:
            return character.encode("unicode_escape").decode()
        return character

    return "".join(map(shown, str(text)))


def print_problems(problems: Sequence[str], what: str, hint: str) -> None:
    """Print the mistakes that a run has come across to stderr; nothing where there are none.

    Args:
        problems: one a line.
        what: follows their number: "3 {what}:".
        hint: what to do about them.
    """
    if problems:
        lines = [f"error: {len(problems)} {what}:", *(f"  {problem}" for problem in problems)]
        print("\n".join([*lines, hint]), file=sys.stderr)


_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "ALLOC_FAILED",
    "could not create a primitive",
)
"""Of the RuntimeErrors with which torch's CPU allocator, CUDA, cuBLAS and oneDNN say it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, NumPy, OpenCV, torch or CUDA means that memory is used up."""
    cv2 = sys.modules.get("cv2")  # an error of OpenCV comes from one that is imported
    if cv2 is not None and isinstance(error, cv2.error):
        return error.code == cv2.Error.STS_NO_MEM
    if isinstance(error, MemoryError):
        return True
    # CUDA's error is a RuntimeError, too: "CUDA out of memory".
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


@contextmanager
def memory_errors(what: str, hint: str) -> Iterator[None]:
    """Say what has used up the memory, and what to do.

    Raises:
        UserError: "{what}; {hint}", in place of an error that means that memory is used up.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise UserError(f"{what}; {hint}") from None


def _prepare_console() -> None:
    """Escape what the console's encoding lacks; without a console nothing is printed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the program was started with the stream closed
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 (Python closes it)
        elif hasattr(stream, "reconfigure"):
            with suppress(OSError):  # its file was replaced by one of another kind
                stream.reconfigure(errors="backslashreplace")


def _print_last(message: str) -> None:
    """Print to standard error; where it or standard output is lost, Python's exit must not fail."""
    for stream, text in ((sys.stdout, ""), (sys.stderr, f"{message}\n")):
        try:
            stream.write(text)
            stream.flush()
        except OSError:
            with suppress(OSError), Path(os.devnull).open("w") as nothing:
                os.dup2(nothing.fileno(), stream.fileno())


@contextmanager
def friendly_errors() -> Iterator[None]:
    """Turn a `UserError`, a stop or Ctrl-C into a message on standard error and an exit code.

    Exit codes: 2 for a `UserError`, 75 for a run that was stopped and can go on, 130 for Ctrl-C
    elsewhere, 1 where the console is lost. Any other exception is a defect of this project and
    keeps its traceback.
    """
    _prepare_console()
    try:
        yield
        sys.stdout.flush()
    except UserError as error:
        _print_last(f"error: {printable(error, keep_lines=True)}")
        raise SystemExit(2) from None
    except Interrupted as stop:
        _print_last(str(stop))
        raise SystemExit(EXIT_INTERRUPTED) from None
    except KeyboardInterrupt:
        _print_last("interrupted")
        raise SystemExit(130) from None
    except BrokenPipeError:  # for instance of `hidiff … | head`
        _print_last("error: the console was closed")
        raise SystemExit(1) from None
