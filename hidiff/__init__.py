"""HI-Diff: hierarchical integration diffusion model for realistic image deblurring.

Chen et al., NeurIPS 2023.
"""

import os

# Before torch loads OpenMP: let its idle threads sleep after a short wait. By default they spin,
# and where another process needs a core as well (a loader's worker is enough), training on CPUs
# becomes ten times slower; the price on an idle machine is a few per cent.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from hidiff import metrics
from hidiff.archs import build_network
from hidiff.errors import UserError
from hidiff.models import build_model

__version__ = "0.1.0"
__all__ = ["UserError", "build_model", "build_network", "metrics"]
