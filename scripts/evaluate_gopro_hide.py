"""Score restored GoPro and HIDE images: evaluate_gopro_hide.py --dir results/NAME."""

import sys

from hidiff.cli.score import main
from hidiff.errors import friendly_errors

if __name__ == "__main__":
    with friendly_errors():
        sys.exit(main(sys.argv[1:], datasets=("GoPro", "HIDE")))
