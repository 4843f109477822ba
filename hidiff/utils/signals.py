"""Signals that ask a run to stop: it saves its state first."""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from hidiff.utils.errors import EXIT_INTERRUPTED

STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP")
    if hasattr(signal, name)
)
"""Signals that ask a run to stop: its state is saved first. Windows lacks some."""

GRACE = 60.0
"""Seconds after a signal in which processes that train together must come to an agreement."""


class StopRequest:
    """While entered, the signals set `received` in place of ending the process.

    A second SIGINT (Ctrl-C) raises `KeyboardInterrupt`. A signal that is ignored already stays
    so: SIGHUP after nohup, SIGINT of a job in the background.

    Args:
        grace: seconds after a signal until the process ends with `EXIT_INTERRUPTED`, whatever it
            is in, unless `acknowledged` was set; None leaves it time without end. A process that
            waits for another one cannot save, and Python's handlers do not even run in it.
    """

    def __init__(self, grace: float | None = None) -> None:
        self.received: str | None = None
        self.acknowledged = threading.Event()
        """To be set where the signal has had its effect and what follows must not be cut off."""
        self._grace = grace
        self._alarm: socket.socket | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        # Python delivers signals to the main thread only, and only it may change handlers.
        if threading.current_thread() is threading.main_thread():
            self._previous = {
                s: signal.signal(s, self._receive)
                for s in STOP_SIGNALS
                if signal.getsignal(s) != signal.SIG_IGN
            }
            if self._grace is not None:
                watched, self._alarm = socket.socketpair()
                self._alarm.setblocking(False)
                signal.set_wakeup_fd(self._alarm.fileno(), warn_on_full_buffer=False)
                threading.Thread(target=self._watch, args=(watched,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self.acknowledged.set()
        if self._alarm is not None:
            signal.set_wakeup_fd(-1)
            self._alarm.close()

    def _watch(self, watched: socket.socket) -> None:
        """End the process where it does not acknowledge a signal in time."""
        with watched:
            while number := watched.recv(1):
                if number[0] in STOP_SIGNALS and not self.acknowledged.wait(self._grace):
                    with suppress(OSError):
                        os.write(2, b"\nnot stopped in time, another process does not answer; "
                                    b"resume with --auto_resume\n")  # fmt: skip
                    os._exit(EXIT_INTERRUPTED)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.received == "SIGINT":
                raise KeyboardInterrupt
            # Not through Python's files: the signal may have come in the middle of a write.
            if os.environ.get("RANK", "0") == "0":
                with suppress(OSError):
                    os.write(2, b"\nsaving after this step; Ctrl-C again ends at once\n")
        self.received = signal.Signals(number).name
