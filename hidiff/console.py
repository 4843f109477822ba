"""Standard output and standard error that a program outlives."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any


class _Lossy(io.RawIOBase):
    """Drops what cannot be written, and remembers why.

    A training is worth more than its console: the terminal may be gone, the other end of the pipe
    closed, the disk of a redirected output full.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self.failure: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def isatty(self) -> bool:
        return self._raw.isatty()

    def write(self, data: Any) -> int:
        try:
            written = self._raw.write(data)
        except OSError as error:
            self.failure, written = error, None
        return len(data) if written is None else written


def keep_console() -> None:
    """From now on no writing to `sys.stdout` and `sys.stderr` fails, nor their end at exit.

    What the console's encoding lacks is written as an escape sequence. Streams that somebody has
    put in place of Python's own are left as they are.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the program was started with the stream closed
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 (Python closes it)
        elif stream is getattr(sys, f"__{name}__"):
            stream.flush()
            raw = getattr(stream.buffer, "raw", stream.buffer)  # `python -u` has no buffer
            kept = io.TextIOWrapper(
                io.BufferedWriter(_Lossy(raw)),
                encoding=stream.encoding,
                errors="backslashreplace",
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, kept)


def console_failure() -> OSError | None:
    """Why something could not be written, if that was so."""
    for stream in (sys.stdout, sys.stderr):
        raw = getattr(getattr(stream, "buffer", None), "raw", None)
        if isinstance(raw, _Lossy) and raw.failure is not None:
            return raw.failure
    return None
