"""What is seen of a run: log file, console, progress bar, TensorBoard and Weights & Biases."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hidiff.data import BatchPlan
from hidiff.engine.speed import Speed, duration
from hidiff.options import Options
from hidiff.utils.distributed import Processes
from hidiff.utils.errors import UserError, printable
from hidiff.utils.memory import peak_bytes

LOG = logging.getLogger("hidiff")

BAR_INTERVAL = 0.5
"""Seconds between updates of the numbers in the progress bar."""


class _ConsoleHandler(logging.Handler):
    """Prints above a running progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except OSError as error:
            raise UserError(
                f"the console cannot be written any more ({error.strerror or error}); earlier "
                "checkpoints are whole, and --auto_resume goes on from the newest"
            ) from None


class _FileHandler(logging.FileHandler):
    """A log file; a full disk ends the run, as for checkpoints."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            raise UserError(
                f"the log file {self.baseFilename} cannot be written ({error.strerror}); make room "
                "and resume with --auto_resume"
            ) from None
        super().handleError(record)


class _ConsoleFormatter(logging.Formatter):
    """Texts from outside must not control the terminal, nor forge lines."""

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.args, tuple):
            record.args = tuple(
                arg if isinstance(arg, int | float) else printable(arg) for arg in record.args
            )
        return printable(super().format(record), keep_lines=True)


def start_logging(*, is_main: bool, file: Path | None = None) -> logging.Logger:
    """Log to the console and, where it is given, to a file; other processes show warnings only.

    Calling it again replaces the earlier set-up.
    """
    for handler in list(LOG.handlers):
        LOG.removeHandler(handler)
        with suppress(OSError):
            handler.close()
    LOG.propagate = False
    LOG.setLevel(logging.INFO if is_main else logging.WARNING)
    console = _ConsoleHandler()
    console.setFormatter(_ConsoleFormatter("%(message)s"))
    LOG.addHandler(console)
    if file is not None and is_main:
        handler = _FileHandler(file, encoding="utf-8", delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s"))
        LOG.addHandler(handler)
    return LOG


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
    """TensorBoard's scalars and pictures; does nothing where `folder` is None.

    Where they cannot be written they are switched off with a warning: a training is worth more.

    Args:
        folder: of the event files, `tb_logger/{name}`.
        first_step: earlier entries from this step on are dropped (a resumed run writes them anew).
    """

    def __init__(self, folder: Path | None, first_step: int = 1) -> None:
        self._writer: Any = None
        if folder is not None:
            # TensorBoard takes a second to import; runs without it need not wait.
            from torch.utils.tensorboard import SummaryWriter

            try:
                self._writer = SummaryWriter(str(folder), purge_step=first_step)
            except OSError as error:
                self._switch_off(error)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers under their names ('losses/l_pix', …)."""
        with self._switched_off_on_failure():
            if self._writer is not None:
                for name, value in values.items():
                    self._writer.add_scalar(name, value, step)
                self._writer.flush()

    def picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """Write an image (H, W, 3) uint8 RGB."""
        with self._switched_off_on_failure():
            if self._writer is not None:
                self._writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        with self._switched_off_on_failure():
            if self._writer is not None:
                self._writer.close()

    @contextmanager
    def _switched_off_on_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._switch_off(error)

    def _switch_off(self, error: OSError) -> None:
        self._writer = None
        reason = error.strerror or error
        LOG.warning("TensorBoard's files cannot be written (%s); it is switched off", reason)


def start_wandb(options: Options) -> None:
    """Let Weights & Biases follow the TensorBoard files of this process, for `logger.wandb`.

    To be called before they are begun. Where it cannot be started there is a warning, and the run
    goes on.
    """
    section = options.logger.wandb
    if section.project is None:
        return
    if not options.logger.use_tb_logger:
        LOG.warning("logger.wandb has no effect without logger.use_tb_logger: true")
        return
    try:
        import wandb
    except ImportError:
        LOG.warning(
            "logger.wandb: the package wandb is not installed (pip install wandb); the run goes on "
            "without it, and its curves are in TensorBoard"
        )
        return
    try:
        wandb.init(
            project=section.project,
            name=options.name,
            id=section.resume_id or options.name,
            resume="allow",
            config=dict(options.sections),
            sync_tensorboard=True,
        )
    except wandb.Error as error:
        LOG.warning(
            "logger.wandb: %s; the run goes on without it. Log in (wandb login), or set "
            "WANDB_MODE=offline and send the run later (wandb sync)",
            str(error).splitlines()[0],
        )


class Reporter:
    """Shows the steps of a training: progress bar, and now and then log and TensorBoard.

    Args:
        options: of the training.
        plan: its phases.
        processes: the first of them shows.
        writer: of the curves.
        step: after which it goes on.
        print_freq: steps between log lines; None for none, also not for the last step.
    """

    def __init__(
        self,
        options: Options,
        plan: BatchPlan,
        processes: Processes,
        writer: MetricsWriter,
        *,
        step: int,
        print_freq: int | None,
    ) -> None:
        self.plan, self.processes, self.writer = plan, processes, writer
        self.total_iter, self.print_freq = options.for_training()[0].total_iter, print_freq
        self.speed = Speed(plan, self.total_iter)
        self.bar = tqdm(
            total=self.total_iter,
            initial=step,
            desc=options.name,
            # None: no bar where the output is no terminal; the log lines go there too.
            disable=None if processes.is_main else True,
            dynamic_ncols=True,
            # Its own guess of the time left does not know the phases.
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]",
        )
        self._bar_time = 0.0

    def step(
        self, step: int, lr: float, losses: Mapping[str, float], grad_norm: float, waited: float
    ) -> None:
        """Show a step that is done.

        Args:
            step: 1-based.
            lr: its learning rate.
            losses: means over all processes.
            grad_norm: before clipping.
            waited: seconds that this process has spent waiting for data so far.
        """
        self.speed.step(step)
        self.bar.update()
        phase = self.plan.phase_index(step) + 1
        now = time.monotonic()
        if not self.bar.disable and now - self._bar_time > BAR_INTERVAL:
            self._bar_time = now
            numbers = {name: f"{loss:.4f}" for name, loss in losses.items()}
            phases = f"{phase}/{len(self.plan.phases)}"
            left_text = duration(self.speed.seconds_left(step))
            self.bar.set_postfix({**numbers, "lr": f"{lr:.2e}", "phase": phases, "left": left_text})
        if self.print_freq is None or (step % self.print_freq and step != self.total_iter):
            return
        if not self.processes.is_main:
            return
        figures = self.speed.since_last(waited)
        left = self.speed.seconds_left(step)
        peak = peak_bytes(self.processes.device)
        words = [
            f"{figures['steps_per_second']:.3g} steps/s",
            f"{duration(left)} left",
            f"{figures['waiting']:.0%} spent waiting for data",
        ]
        scalars = {f"losses/{name}": value for name, value in losses.items()}
        scalars |= {"train/lr": lr, "train/grad_norm": grad_norm, "train/phase": phase}
        scalars |= {f"speed/{name}": value for name, value in figures.items()}
        scalars["speed/hours_left"] = left / 3600
        if peak is not None:
            words.append(f"memory {peak / 2**30:.1f} GiB")
            scalars["speed/peak_memory_gib"] = peak / 2**30
        LOG.info(
            "step %d/%d, phase %d, lr %.4e, %s, gradient norm %.4g, %s",
            *(step, self.total_iter, phase, lr),
            ", ".join(f"{name} {value:.6f}" for name, value in losses.items()),
            grad_norm,
            ", ".join(words),
        )
        self.writer.scalars(scalars, step)
