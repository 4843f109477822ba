"""What command lines share."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable
from pathlib import Path

from hidiff.utils.distributed import LAUNCHERS
from hidiff.utils.errors import UserError


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
    add_overrides(parser, "set options of the file, for example train:total_iter=1000")
    return parser


def add_overrides(parser: argparse.ArgumentParser, text: str) -> None:
    """Add the release's `--force_yml`, explained by `text`."""
    parser.add_argument(
        "--force_yml",
        nargs="+",
        action="extend",
        default=[],
        metavar="SECTION:OPTION=VALUE",
        help=text,
    )


def named_folders(texts: Iterable[str], names: Collection[str], option: str) -> dict[str, Path]:
    """NAME=DIR arguments as folders by data set.

    Args:
        names: the data sets that may be named.
        option: the option that takes the arguments, for messages.

    Raises:
        UserError: an argument is not of this form, or its name is none of `names`.
    """
    folders = {}
    for text in texts:
        name, _, folder = text.partition("=")
        if name not in names or not folder:
            raise UserError(
                f"{option} {text}: expected NAME=DIR, where NAME is {' or '.join(names)}"
            )
        folders[name] = Path(folder)
    return folders
