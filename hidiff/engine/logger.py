"""What is seen of a run: log file, console, progress bar and TensorBoard."""

from __future__ import annotations

import io
import itertools
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hidiff.benchmark.timing import peak_bytes
from hidiff.data import BatchPlan
from hidiff.engine.speed import Speed, duration, matmul_seconds_a_pixel
from hidiff.models import DeblurModel
from hidiff.options import Options
from hidiff.utils.distributed import Processes
from hidiff.utils.errors import UserError, console_failure

LOGGER_NAME = "hidiff"

BAR_INTERVAL = 0.5
"""Seconds between updates of the numbers in the progress bar; each waits for the GPU."""

_lost: set[str] = set()
"""What `warn_of_loss` has named since `start_logging`."""


def warn_of_loss(what: str, error: Exception) -> None:
    """Say once that something which a run can do without cannot be written."""
    if what not in _lost:
        _lost.add(what)
        reason = getattr(error, "strerror", None) or error
        get_logger().warning("%s cannot be written (%s); the run goes on", what, reason)


class _ConsoleHandler(logging.Handler):
    """Prints above a running progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
            error = console_failure()
        except OSError as failure:  # from a stream that is not Python's own
            error = failure
        except Exception:
            self.handleError(record)
            return
        if error is not None:
            warn_of_loss("the console", error)


class _FileHandler(logging.FileHandler):
    """A log file that may be lost, and that goes on when it can be written again."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # opening it
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            warn_of_loss(f"the log file {self.baseFilename}", error)
        else:
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def get_logger() -> logging.Logger:
    """The project's logger; silent on processes that `start_logging` did not start it on."""
    return logging.getLogger(LOGGER_NAME)


def start_logging(*, is_main: bool, file: Path | None = None) -> logging.Logger:
    """Log to the console and, when given, to a file; only warnings of other processes are shown.

    Calling it again replaces the earlier set-up. Nothing that is logged raises: where console or
    file cannot be written, the other one says so.
    """
    logger = get_logger()
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    _lost.clear()
    logger.propagate = False
    logger.setLevel(logging.INFO if is_main else logging.WARNING)
    console = _ConsoleHandler()
    console.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(console)
    if file is not None and is_main:
        handler = _FileHandler(file, encoding="utf-8", delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s"))
        logger.addHandler(handler)
    return logger


@contextmanager
def failures_logged(file: Path, processes: Processes) -> Iterator[None]:
    """Write to the log file why this process fails, whichever of them it is."""
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else traceback.format_exc()
        where = f"process {processes.rank} of {processes.world_size}"
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        # On a full disk the reason must still reach the console.
        with suppress(OSError), file.open("a", encoding="utf-8") as log:
            log.write(f"{now} ERROR: {where} failed: {reason}\n")
        raise


class MetricsWriter:
    """TensorBoard scalars and pictures; does nothing when `folder` is None.

    What cannot be written is left out, with one warning. TensorBoard's own writer uses a thread
    whose failures come up in later calls, and in none at all; here a record is in the file when the
    call returns, or not at all.

    Args:
        folder: of the event files, `tb_logger/{name}`.
        first_step: earlier entries from this step on are dropped (a resumed run writes them anew).
        wandb: a run of Weights & Biases that gets the scalars too, see `start_wandb`.
    """

    _numbers = itertools.count()

    def __init__(self, folder: Path | None, first_step: int = 1, wandb: Any | None = None) -> None:
        self._folder, self._wandb = folder, wandb
        place = f"{socket.gethostname()}.{os.getpid()}.{next(self._numbers)}"
        self._name = f"events.out.tfevents.{int(time.time()):010d}.{place}"
        self._first_step: int | None = first_step

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers under their names ('losses/l_pix', …)."""
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)
        if self._folder is not None:
            from torch.utils.tensorboard.summary import scalar

            self._write([scalar(name, value) for name, value in values.items()], step)

    def picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """Write an image (H, W, 3) uint8 RGB."""
        if self._folder is not None:
            from torch.utils.tensorboard.summary import image

            self._write([image(name, picture, dataformats="HWC")], step)

    def _write(self, summaries: list[Any], step: int) -> None:
        assert self._folder is not None
        # TensorBoard takes a second to import; runs without it need not wait.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        now = time.time()
        events = [Event(wall_time=now, step=step, summary=summary) for summary in summaries]
        if self._first_step is not None:
            start = {"wall_time": now, "step": self._first_step}
            session = SessionLog(status=SessionLog.START)
            events[:0] = [
                Event(**start, file_version="brain.Event:2"),
                Event(**start, session_log=session),
            ]
        data = io.BytesIO()
        for event in events:
            RecordWriter(data).write(event.SerializeToString())
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _append(self._folder / self._name, data.getvalue())
            self._first_step = None
        except OSError as error:
            warn_of_loss(f"TensorBoard's folder {self._folder}", error)


def _append(path: Path, data: bytes) -> None:
    """Append all of the data or nothing.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise


def start_wandb(options: Options) -> Any | None:
    """The run of Weights & Biases that `logger.wandb` asks for.

    None, after a warning, where it cannot be started: a training is worth more than its curves.
    """
    section = options.logger.wandb
    if section.project is None:
        return None
    try:
        import wandb
    except ImportError:
        get_logger().warning(
            "logger.wandb: the package wandb is not installed (pip install wandb); the run goes on "
            "without it, and its curves are in TensorBoard"
        )
        return None
    try:
        return wandb.init(
            project=section.project,
            name=options.name,
            id=section.resume_id or options.name,
            resume="allow",
            config=dict(options.sections),
        )
    except wandb.Error as error:
        get_logger().warning(
            "logger.wandb: %s; the run goes on without it. Log in (wandb login), or set "
            "WANDB_MODE=offline and send the run later (wandb sync)",
            str(error).splitlines()[0],
        )
        return None


class Reporter:
    """Shows the steps of a training: progress bar, and now and then log and TensorBoard.

    Args:
        name: of the experiment.
        plan: its phases.
        processes: their mean losses are shown, by the first one.
        total_iter: steps of the training.
        step: after which it goes on.
        print_freq: steps between log lines; None for none, also not for the last step.
        writer: of the curves.
        speed: what measures the steps.
        model: whose work is compared with matrix products.
        dtype: of these products.
    """

    def __init__(
        self,
        name: str,
        plan: BatchPlan,
        processes: Processes,
        *,
        total_iter: int,
        step: int,
        print_freq: int | None,
        writer: MetricsWriter,
        speed: Speed,
        model: DeblurModel,
        dtype: torch.dtype,
    ) -> None:
        self.speed = speed
        self._model, self._dtype = model, dtype
        self._least: float | None = None
        self.plan, self.processes = plan, processes
        self.total_iter, self.print_freq = total_iter, print_freq
        self.writer = writer
        self.bar = tqdm(
            total=total_iter,
            initial=step,
            desc=name,
            # None: no bar where the output is no terminal; the log lines go there too.
            disable=None if processes.is_main else True,
            dynamic_ncols=True,
            # Its own guess of the time left does not know the phases.
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]",
        )
        self._bar_time = 0.0

    def step(self, step: int, lr: float, losses: dict[str, Tensor], grad_norm: float) -> None:
        """Show a step that is done."""
        self.bar.update()
        phase = self.plan.phase_index(step) + 1
        now = time.monotonic()
        if not self.bar.disable and now - self._bar_time > BAR_INTERVAL:
            self._bar_time = now
            numbers = {name: f"{loss.item():.4f}" for name, loss in losses.items()}
            phases = f"{phase}/{len(self.plan.phases)}"
            left = duration(self.speed.seconds_left(step))
            self.bar.set_postfix({**numbers, "lr": f"{lr:.2e}", "phase": phases, "left": left})
        if self.print_freq is None or (step % self.print_freq and step != self.total_iter):
            return
        figures = self.speed.since_last()
        waiting = torch.tensor(figures["waiting"]).to(next(iter(losses.values())))
        *means, figures["waiting"] = self.processes.mean(
            torch.stack([*losses.values(), waiting])
        ).tolist()
        values = dict(zip(losses, means, strict=True))
        scalars = {f"losses/{name}": value for name, value in values.items()}
        scalars |= {"train/lr": lr, "train/grad_norm": grad_norm, "train/phase": phase}
        if self.processes.is_main:
            figures = self._figures(figures, step)
            scalars |= {f"speed/{name}": value for name, value in figures.items()}
            get_logger().info(
                "step %d/%d, phase %d, lr %.4e, %s, gradient norm %.4g, %s",
                *(step, self.total_iter, phase, lr),
                ", ".join(f"{name} {value:.6f}" for name, value in values.items()),
                grad_norm,
                _in_words(figures),
            )
        self.writer.scalars(scalars, step)

    def _figures(self, figures: Mapping[str, float], step: int) -> dict[str, float]:
        """Those of `Speed.since_last` with the time left, the memory and the machine's share."""
        device = self.processes.device
        figures = {**figures, "hours_left": self.speed.seconds_left(step) / 3600}
        if (peak := peak_bytes(device)) is not None:
            figures["peak_memory_gib"] = peak / 2**30
        if self._least is None:
            with self.speed.aside():
                self._least = matmul_seconds_a_pixel(self._model, device, self._dtype)
        figures["matmul_share"] = self._least * figures["pixels_per_second"]
        return figures


def _in_words(figures: Mapping[str, float]) -> str:
    """'1.25 steps/s, 2 h 5 min left, data 3%, 41% of matrix products, memory 11.3 GiB'."""
    parts = [
        f"{figures['steps_per_second']:.3g} steps/s",
        f"{duration(figures['hours_left'] * 3600)} left",
        f"data {figures['waiting']:.0%}",
        f"{figures['matmul_share']:.0%} of matrix products",
    ]
    if "peak_memory_gib" in figures:
        parts.append(f"memory {figures['peak_memory_gib']:.1f} GiB")
    return ", ".join(parts)
