"""HI-Diff: hierarchical integration diffusion model for realistic image deblurring.

Chen et al., NeurIPS 2023.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before torch loads OpenMP: let its idle threads sleep after a short wait. By default they spin,
# and where another process needs a core as well (a loader's worker is enough), training on CPUs
# becomes ten times slower; the price on an idle machine is a few per cent.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if TYPE_CHECKING:
    from hidiff import metrics
    from hidiff.archs import build_network
    from hidiff.models import DeblurModel, build_model
    from hidiff.utils.errors import UserError
    from hidiff.weights.download import list_models

__version__ = "0.1.0"
__all__ = ["UserError", "build_model", "build_network", "list_models", "load", "metrics"]

_LAZY = {
    "UserError": "hidiff.utils.errors",
    "build_model": "hidiff.models",
    "build_network": "hidiff.archs",
    "list_models": "hidiff.weights.download",
}
"""Where the public names come from; importing PyTorch takes seconds, so each waits for its use."""


def __getattr__(name: str) -> Any:
    if name == "metrics":
        return importlib.import_module("hidiff.metrics")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'hidiff' has no attribute '{name}'")


def load(source: str | Path, *, device: str = "cpu") -> DeblurModel:
    """A trained model in evaluation mode, ready for `model.restore`.

    What there is to know about it is logged as warnings of the logger 'hidiff'.
    `hidiff.weights.find.load_model` also returns its options and what is known about it.

    Args:
        source: bundled (the model that comes with the package), an experiment's name or folder, a
            packed file, a folder with net_g.pth and its like, or hf:OWNER/NAME; see
            `hidiff.weights.find`.
        device: where the model is to be, such as 'cuda'.

    Raises:
        UserError: there is no such model or device, a file is damaged, or the model is of stage 1.
    """
    import logging

    from hidiff.weights.find import load_model

    loaded = load_model(source, device=device)
    for notice in loaded.notices:
        logging.getLogger("hidiff").warning(notice)
    return loaded.model
