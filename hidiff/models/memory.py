"""Which errors mean that memory is used up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import torch

from hidiff.errors import UserError

_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
"""Of the RuntimeErrors with which torch's CPU allocator, CUDA and cuBLAS say it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, NumPy, OpenCV, torch or CUDA means that memory is used up."""
    if isinstance(error, cv2.error):
        return error.code == cv2.Error.STS_NO_MEM
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


@contextmanager
def memory_errors(what: str, way_out: str) -> Iterator[None]:
    """Say what has used up the memory, and what to do.

    Raises:
        UserError: "{what}; {way_out}", in place of an error that means that memory is used up.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise UserError(f"{what}; {way_out}") from None
