"""HI-Diff: hierarchical integration diffusion model for realistic image deblurring.

Chen et al., NeurIPS 2023.
"""

from hidiff.archs import build_network
from hidiff.errors import UserError
from hidiff.models import build_model

__version__ = "0.1.0"
__all__ = ["UserError", "build_model", "build_network"]
