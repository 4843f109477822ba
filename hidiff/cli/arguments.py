"""What the command lines of train.py and test.py share."""

from __future__ import annotations

import argparse
from pathlib import Path

from hidiff.engine.distributed import LAUNCHERS


def option_parser(description: str | None) -> argparse.ArgumentParser:
    """The release's arguments: -opt, --launcher, --local_rank, --force_yml."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-opt", type=Path, required=True, metavar="FILE", help="YAML option file")
    parser.add_argument(
        "--launcher",
        choices=LAUNCHERS,
        default="none",
        help="none: one process; pytorch: torchrun or torch.distributed.launch; slurm: srun",
    )
    parser.add_argument(
        "--local_rank",
        "--local-rank",
        type=int,
        default=0,
        help="given by torch.distributed.launch; the variable LOCAL_RANK counts",
    )
    parser.add_argument(
        "--force_yml",
        nargs="+",
        action="extend",
        default=[],
        metavar="SECTION:OPTION=VALUE",
        help="set options of the file, for example train:total_iter=1000",
    )
    return parser
