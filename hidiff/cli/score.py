"""Score restored GoPro and HIDE images with the published protocol, without MATLAB.

    hidiff score --dir results/test_HI_Diff_GoPro
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hidiff.errors import UserError
from hidiff.metrics import PROTOCOLS
from hidiff.scoring.program import (
    named_folders,
    plan_job,
    restored_folder,
    run_jobs,
    score_parser,
)

DATASETS = ("GoPro", "HIDE")


def choose_datasets(result: Path, wanted: list[str] | None) -> list[str]:
    """The wanted data sets, or those that the result folder has.

    Raises:
        UserError: it has none.
    """
    if wanted:
        return list(dict.fromkeys(wanted))
    found = [name for name in DATASETS if restored_folder(result, name).is_dir()]
    if not found:
        places = " nor ".join(str(restored_folder(result, name)) for name in DATASETS)
        raise UserError(
            f"--dir: there is neither {places}; restore the images first, with test.py and "
            "val.save_img: true"
        )
    return found


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code.

    Raises:
        UserError: a mistake in the call.
    """
    parser = score_parser(
        "Score restored images of GoPro and HIDE. The default protocol 'matlab' is the one behind "
        "Table 2 of the paper (SSIM of the colour image as a volume)."
    )
    parser.add_argument(
        "--dataset",
        nargs="+",
        choices=DATASETS,
        help="what to score (default: what the result folder has of both)",
    )
    parser.add_argument(
        "--target",
        nargs="+",
        default=[],
        metavar="NAME=DIR",
        help="folders of the sharp images (default: GoPro=datasets/GoPro/test/target "
        "HIDE=datasets/test/HIDE/target)",
    )
    parser.add_argument("--protocol", choices=PROTOCOLS, default="matlab", help="default: matlab")
    args = parser.parse_args(arguments)
    targets = named_folders(args.target, DATASETS, "--target")
    jobs = [
        plan_job(args, name, args.protocol, targets.get(name), f"--target {name}=DIR")
        for name in choose_datasets(args.dir, args.dataset)
    ]
    return run_jobs(args, jobs)
