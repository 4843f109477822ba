#!/usr/bin/env python
"""Score restored RealBlur images: evaluate_realblur.py --dataset RealBlur_J --dir results/NAME."""

import sys

from hidiff.cli.score import main
from hidiff.utils.errors import friendly_errors

if __name__ == "__main__":
    with friendly_errors():
        sys.exit(main(sys.argv[1:], datasets=("RealBlur_R", "RealBlur_J")))
