"""Everything about a GPU that can be measured in minutes, most important first.

Items are run one after the other, each for its share of the time. The report is written after
every figure, so that it is useful wherever the run is cut off.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from hidiff.benchmark import gpu_numbers, gpu_speed, gpu_training
from hidiff.benchmark.gpu_defaults import option_lines
from hidiff.benchmark.gpu_setting import FULL, TINY, Row, Setting, free, in_a_line
from hidiff.cost.timing import machine_name
from hidiff.errors import UserError
from hidiff.files import write_text
from hidiff.prepare.quickstart import make_quickstart
from hidiff.scoring.record import library_versions
from hidiff.tables import markdown_table


@dataclass(frozen=True)
class Item:
    """Something to check: what it is called, its share of the time, and what yields its rows."""

    title: str
    share: float
    rows: Callable[[Setting], Iterator[Row]]


ITEMS = {
    "networks": Item("Networks and trajectories against float64", 60, gpu_numbers.networks),
    "kernels": Item("Triton kernels against exact results and eager", 60, gpu_numbers.triton),
    "restoring": Item("Restoring", 40, gpu_speed.restoring),
    "training": Item("Training step of every phase", 130, gpu_speed.training),
    "compile": Item("torch.compile", 60, gpu_speed.compiled),
    "deterministic": Item("Deterministic algorithms", 15, gpu_training.determinism),
    "resume": Item("Resuming bit by bit", 20, gpu_training.resuming),
    "processes": Item("Processes that train together", 30, gpu_training.ranks),
    "curves": Item("Training in bf16 and fp32", 60, gpu_training.curves),
    "loading": Item("Waiting for data", 35, gpu_speed.loading),
}
"""By name, most important first; the shares are seconds, about eight minutes in all."""

NEGATIVE = ("failed", "error")


@dataclass
class Outcome:
    """What an item has found.

    `verdict` is 'passed', 'failed' (a row says so), 'measured' (no row has a verdict), 'error',
    'running', or 'not run'. `cut_off` says that its time was used up before all rows were there.
    """

    verdict: str = "not run"
    seconds: float = 0.0
    cut_off: bool = False
    error: str | None = None
    rows: list[Row] = field(default_factory=list)

    def judge(self) -> None:
        """Set the verdict that the rows have."""
        verdicts = [row["ok"] for row in self.rows if "ok" in row]
        if self.error is not None:
            self.verdict = "error"
        elif not self.rows:
            self.verdict = "not run"
        elif not all(verdicts):
            self.verdict = "failed"
        else:
            self.verdict = "passed" if verdicts else "measured"


class TimeUp(BaseException):
    """An item's time is used up; no `except Exception` on the way stops it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeUp` in the body after so many seconds.

    It comes again every few seconds, for where Python drops exceptions, in callbacks.
    """

    active = True

    def stop(number: int, frame: object) -> None:
        if active:
            raise TimeUp

    handler = signal.signal(signal.SIGALRM, stop)
    left = signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), 5)
    try:
        try:
            yield
        finally:
            active = False
    finally:  # also where the time is up on the way out
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *left)


class GpuCheck:
    """The items that are chosen, and the report about them.

    Args:
        device: a GPU, or the CPU, where everything is tiny.
        output: folder of the report.
        data: folder with pairs; made where it does not exist.
        minutes: for all items.
        names: keys of `ITEMS`, in order. Where these are not all, the others stay in the report as
            they are there.
    """

    def __init__(
        self,
        device: torch.device,
        output: Path,
        data: Path,
        minutes: float,
        names: Sequence[str],
    ) -> None:
        self.device, self.minutes, self.names = device, minutes, names
        self.output, self.data = output.absolute(), data.absolute()
        self.sizes = FULL if device.type == "cuda" else TINY
        self.machine: dict[str, Any] = {
            "device": machine_name(device),
            "versions": library_versions(),
            "CUDA": torch.version.cuda,
        }
        if device.type == "cuda":
            self.machine |= {
                "GPUs": torch.cuda.device_count(),
                "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
                "memory [GiB]": torch.cuda.get_device_properties(device).total_memory / 2**30,
            }
        self.outcomes = {name: Outcome() for name in ITEMS}
        if len(names) < len(ITEMS):
            self._keep_earlier()

    def _keep_earlier(self) -> None:
        """Take the items that are not run now from the report of the same machine."""
        try:
            earlier = json.loads((self.output / "report.json").read_text(encoding="utf-8"))
            same = earlier["machine"] == json.loads(json.dumps(self.machine))
            for name, outcome in earlier["items"].items() if same else ():
                if name not in self.names:
                    self.outcomes[name] = Outcome(**outcome)
        except (OSError, ValueError, KeyError, TypeError):
            return

    def run(self) -> int:
        """Run the items; the exit code is 1 where a verdict is negative."""
        deadline = time.monotonic() + 60 * self.minutes
        self.output.mkdir(parents=True, exist_ok=True)
        self._write()
        if not self.data.is_dir():
            print(f"making {self.data}", flush=True)
            make_quickstart(self.data)
        left = list(self.names)
        log = self.output / "log.txt"
        with TemporaryDirectory() as folder, log.open("w", encoding="utf-8") as file:
            while left and time.monotonic() < deadline:
                shares = [ITEMS[name].share for name in left]
                name, remaining = left.pop(0), deadline - time.monotonic()
                print(f"{ITEMS[name].title}: ", end="", flush=True)
                with chdir(folder), redirect_stdout(file), redirect_stderr(file):
                    self._item(name, remaining * shares[0] / sum(shares), Path(folder))
                outcome = self.outcomes[name]
                cut = ", cut off" if outcome.cut_off else ""
                print(f"{outcome.verdict}{cut} ({outcome.seconds:.0f} s)", flush=True)
                if outcome.error:
                    print(f"  {outcome.error}")
                if left and not self._device_works():
                    return self._go_on_elsewhere(left, (deadline - time.monotonic()) / 60)
        return self.finish()

    def _item(self, name: str, seconds: float, folder: Path) -> None:
        """Run one item for so long, and note what it yields."""
        outcome = self.outcomes[name] = Outcome("running")
        setting = Setting(self.device, self.sizes, self.data, folder, seconds)
        started = time.perf_counter()
        self._write()
        torch.backends.cudnn.benchmark = True  # as in training
        try:
            with time_limit(seconds):
                for row in ITEMS[name].rows(setting):
                    outcome.rows.append(row)
                    outcome.seconds = time.perf_counter() - started
                    self._write()
        except TimeUp:
            outcome.cut_off = True
        except Exception as error:
            outcome.error = in_a_line(error)
        free()
        outcome.seconds = time.perf_counter() - started
        outcome.judge()
        self._write()

    def _device_works(self) -> bool:
        """Not after a kernel's wrong access to memory: this process has lost the GPU then."""
        try:
            return bool(torch.ones(1, device=self.device).item())
        except RuntimeError:
            return False

    def _go_on_elsewhere(self, left: Sequence[str], minutes: float) -> int:
        """The remaining items in a new process, which adds them to the report."""
        print("the GPU does not answer this process any more; another one goes on", flush=True)
        return subprocess.call(
            [
                *(sys.executable, "-m", "hidiff", "gpu-check", "--device", str(self.device)),
                *("--output", str(self.output), "--data", str(self.data)),
                *("--minutes", str(max(minutes, 0.1)), "--items", *left),
            ]
        )

    def finish(self) -> int:
        """Print the option lines and where the report is; returns the exit code."""
        for line in self._options():
            print(line)
        print(f"report: {self.output / 'report.md'}")
        return int(any(outcome.verdict in NEGATIVE for outcome in self.outcomes.values()))

    def _options(self) -> list[str]:
        return option_lines({name: outcome.rows for name, outcome in self.outcomes.items()})

    def _write(self) -> None:
        """Both files, each complete under its name at any time."""
        report = {
            "machine": self.machine,
            "options": self._options(),
            "items": {name: asdict(outcome) for name, outcome in self.outcomes.items()},
        }
        write_text(self.output / "report.json", json.dumps(report, indent=1) + "\n")
        write_text(self.output / "report.md", markdown(report))


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a page.

    Args:
        report: the content of report.json.
    """
    machine = dict(report["machine"])
    versions = ", ".join(f"{name} {version}" for name, version in machine.pop("versions").items())
    lines = ["# GPU check", "", ", ".join(f"{k}: {_text(v)}" for k, v in machine.items() if v)]
    lines += ["", versions, ""]
    if report["options"]:
        lines += ["Options that the figures speak for:", "", "```yaml", *report["options"], "```"]
        lines.append("")
    overview = [
        [ITEMS[name].title, _verdict(item), f"{item['seconds']:.0f} s"]
        for name, item in report["items"].items()
    ]
    lines += markdown_table(["item", "verdict", "time"], overview)
    for name, item in report["items"].items():
        if not item["rows"] and item["error"] is None:
            continue
        lines += ["", f"## {ITEMS[name].title}", "", f"{_verdict(item)} (`--items {name}`)", ""]
        if item["error"] is not None:
            lines += [f"    {item['error']}", ""]
        columns = dict.fromkeys(key for row in item["rows"] for key in row)
        rows = [[_text(row.get(key)) for key in columns] for row in item["rows"]]
        lines += markdown_table(list(columns), rows) if rows else []
    return "\n".join(lines) + "\n"


def _verdict(item: Mapping[str, Any]) -> str:
    return f"{item['verdict']}{', cut off' if item['cut_off'] else ''}"


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def checked_names(names: Sequence[str] | None) -> list[str]:
    """The items of these names in their order, or all.

    Raises:
        UserError: there is no such item.
    """
    for name in names or ():
        if name not in ITEMS:
            raise UserError(f"--items {name}: there are {', '.join(ITEMS)}")
    return [name for name in ITEMS if not names or name in names]
