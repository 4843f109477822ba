"""Asking a run to stop after the step it is in: what schedulers do before they take a machine."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType, TracebackType

from hidiff.data.loader import STOP_SIGNALS


class StopRequest:
    """While entered, the signals set `received` in place of ending the process.

    A second SIGINT (Ctrl-C) raises `KeyboardInterrupt`. A signal that is ignored already stays
    so: SIGHUP after nohup, SIGINT of a job in the background.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        # Python delivers signals to the main thread only, and only it may change handlers.
        if threading.current_thread() is threading.main_thread():
            self._previous = {
                s: signal.signal(s, self._receive)
                for s in STOP_SIGNALS
                if signal.getsignal(s) != signal.SIG_IGN
            }
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.received == "SIGINT":
                raise KeyboardInterrupt
            # Not through Python's files: the signal may have come in the middle of a write.
            if os.environ.get("RANK", "0") == "0":
                with suppress(OSError):
                    os.write(2, b"\nsaving after this step; Ctrl-C again ends at once\n")
        self.received = signal.Signals(number).name
