"""One attempt of the training that `chaos_test.py` kills: starting, watching, clearing up."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

STAGES = (1, 2)

LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
ARGUMENTS = ("--launcher", "pytorch", "--auto_resume")

PATIENCE = 600.0
"""Seconds that any part of a training may take before the test gives up."""


def name_of(stage: int) -> str:
    """Of a stage's experiment and option file."""
    return f"chaos_S{stage}"


class Job:
    """One attempt at a stage: torchrun with two processes of train.py.

    Args:
        folder: working directory; the option files are in it.
        stage: 1 or 2.
        number: of the attempt, for the name of its console output.
    """

    def __init__(self, folder: Path, stage: int, number: int) -> None:
        name = name_of(stage)
        self.experiment = folder / "experiments" / name
        self._earlier_logs = self._logs()
        self.console = folder / f"stage_{stage}_attempt_{number:03d}.txt"
        with self.console.open("w", encoding="utf-8") as output:
            self.launcher = subprocess.Popen(
                [sys.executable, *LAUNCH, ROOT / "train.py", "-opt", f"{name}.yml", *ARGUMENTS],
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _logs(self) -> set[Path]:
        return set(self.experiment.glob("train_*.log"))

    def log(self) -> str:
        """The log file of this attempt so far."""
        new = self._logs() - self._earlier_logs
        return new.pop().read_text(encoding="utf-8") if new else ""

    def lines(self) -> dict[int, list[str]]:
        """The loss lines so far, by step, without the speed that each run has of its own."""
        found: dict[int, list[str]] = {}
        for match in re.finditer(
            r"INFO: step (\d+)/\d+, (.*gradient norm [^,\n]+).*\n", self.log()
        ):
            found.setdefault(int(match[1]), []).append(match[2])
        return found

    def resumed_from(self) -> int | None:
        """The step after which this attempt went on; None while it has not begun."""
        log = self.log()
        match = re.search(r"resumed after step (\d+)", log)
        if match:
            return int(match[1])
        return 0 if "training set:" in log else None

    def processes(self) -> dict[int, int]:
        """{process id: parent} of the living processes of this attempt, orphans too.

        Their standard output is its console output.
        """
        found = {}
        for path in Path("/proc").iterdir():
            if not path.name.isdigit():
                continue
            # Other people's processes, and those that end while they are looked at.
            with suppress(OSError):
                if (path / "fd/1").readlink() == self.console:
                    # pid (program name) state parent …
                    stat = (path / "stat").read_text(encoding="utf-8")
                    found[int(path.name)] = int(stat.rpartition(")")[2].split()[1])
        return found

    def ranks(self) -> list[int]:
        """Process ids of the training processes; torchrun starts rank 0 first."""
        processes = self.processes().items()
        return sorted(pid for pid, parent in processes if parent == self.launcher.pid)

    def loaders(self) -> list[int]:
        """Process ids of the loader processes, which the training processes start."""
        ranks = self.ranks()
        return sorted(pid for pid, parent in self.processes().items() if parent in ranks)

    def is_running(self) -> bool:
        """Whether torchrun has not ended yet."""
        return self.launcher.poll() is None

    def kill_all(self, first: int | None = None) -> None:
        """SIGKILL to `first`, then to torchrun and all that it has started."""
        for pid in (first, self.launcher.pid, *self.processes()):
            if pid is not None and (pid != self.launcher.pid or self.is_running()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def wait_until_gone(self, seconds: float) -> float | None:
        """Wait for all processes to end; the seconds it took, None if that was not enough."""
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            if not self.is_running() and not self.processes():
                return time.monotonic() - started
            time.sleep(0.05)
        return None


@contextmanager
def running(folder: Path, stage: int, number: int) -> Iterator[Job]:
    """A `Job` that leaves no process behind, whatever happens."""
    job = Job(folder, stage, number)
    try:
        yield job
    finally:
        while job.is_running() or job.processes():
            job.kill_all()
            time.sleep(0.1)


def wait_for(job: Job, condition: Callable[[], bool], what: str, pause: float = 0.01) -> bool:
    """Poll until the condition holds (True) or the job has ended (False).

    Leaves the program with exit code 1 when neither happens within `PATIENCE`.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if not job.is_running():
            return False
        if time.monotonic() > deadline:
            sys.exit(f"no {what} after {PATIENCE:.0f} s; see {job.console}")
        time.sleep(pause)
    return True


def partial_files(experiment: Path) -> dict[str, int]:
    """{name: time of change} of the files that are being written, or were when a kill came."""
    found = {}
    for folder in (experiment / "models", experiment / "training_states"):
        with suppress(FileNotFoundError):
            for entry in os.scandir(folder):
                if entry.name.endswith(".part"):
                    with suppress(FileNotFoundError):
                        found[entry.name] = entry.stat().st_mtime_ns
    return found
