#!/usr/bin/env python
"""Score restored RealBlur images: evaluate_realblur.py --dataset RealBlur_J --dir results/NAME."""

from __future__ import annotations

import sys
from pathlib import Path

from hidiff.errors import friendly_errors
from hidiff.scoring.program import DATA_FOLDERS, plan_job, run_jobs, score_parser

PROTOCOL = "realblur"


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit code.

    Raises:
        UserError: a mistake in the call.
    """
    parser = score_parser(
        "Score restored images of RealBlur as its benchmark does: after scaling and aligning each "
        "to the sharp image (protocol 'realblur'; Tables 2 and 3 of the paper)."
    )
    parser.add_argument(
        "--dataset",
        required=True,
        choices=[name for name in DATA_FOLDERS if name.startswith("RealBlur")],
        help="which part of RealBlur",
    )
    parser.add_argument(
        "--target",
        type=Path,
        metavar="DIR",
        help="folder of the sharp images (default: datasets/test/DATASET/target)",
    )
    args = parser.parse_args(arguments)
    return run_jobs(args, [plan_job(args, args.dataset, PROTOCOL, args.target, "--target")])


if __name__ == "__main__":
    with friendly_errors():
        sys.exit(main())
