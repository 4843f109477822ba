"""Which program and libraries produced a result."""

from __future__ import annotations

import platform

import cv2
import numpy
import skimage
import torch

import hidiff


def library_versions() -> dict[str, str]:
    """The versions of this project, of Python and of the libraries that a score depends on."""
    return {
        "hidiff": hidiff.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "opencv": cv2.__version__,
        "scikit-image": skimage.__version__,
    }
