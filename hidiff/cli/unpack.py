"""Take a packed file apart: hidiff unpack FILE -o FOLDER.

Written are net_g.pth, net_le_dm.pth and net_d.pth in the released layout, their weights bit for bit
those of the packed file, and options.yml, with which test.py restores a folder of photographs.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a packed file")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="where the files go"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code.

    Raises:
        UserError: the packed file is missing or damaged, or a file exists or cannot be written.
    """
    from hidiff.weights.packed import unpack

    for path in unpack(args.file, args.output, overwrite=args.overwrite):
        print(f"written to {path}")
    return 0
