"""Log file, console and TensorBoard."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from tqdm import tqdm

LOGGER_NAME = "hidiff"


class _TqdmHandler(logging.Handler):
    """Prints above a running progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)


def get_logger() -> logging.Logger:
    """The project's logger; silent on processes that `start_logging` did not start it on."""
    return logging.getLogger(LOGGER_NAME)


def start_logging(*, is_main: bool, file: Path | None = None) -> logging.Logger:
    """Log to the console and, when given, to a file; only warnings of other processes are shown.

    Calling it again replaces the earlier set-up.
    """
    logger = get_logger()
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = False
    logger.setLevel(logging.INFO if is_main else logging.WARNING)
    console = _TqdmHandler()
    console.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(console)
    if file is not None and is_main:
        handler = logging.FileHandler(file, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s"))
        logger.addHandler(handler)
    return logger


class MetricsWriter:
    """TensorBoard scalars and pictures; does nothing when `folder` is None.

    Args:
        folder: of the event files, `tb_logger/{name}`.
        first_step: earlier entries from this step on are dropped (a resumed run writes them anew).
    """

    def __init__(self, folder: Path | None, first_step: int = 1) -> None:
        self._writer = None
        if folder is not None:
            # TensorBoard takes a second to import; runs without it need not wait.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers under their names ('losses/l_pix', …)."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """Write an image (H, W, 3) uint8 RGB."""
        if self._writer is not None:
            self._writer.add_image(name, image, step, dataformats="HWC")

    def flush(self) -> None:
        """Write what is buffered to the disk."""
        if self._writer is not None:
            self._writer.flush()
