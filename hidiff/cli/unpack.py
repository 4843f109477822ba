"""Write a model in the released layout: hidiff unpack MODEL -o FOLDER.

Written are net_g.pth, net_le_dm.pth and net_d.pth in the released layout, their weights bit for bit
those of the model, and options.yml, with which test.py restores a folder of photographs.
"""

from __future__ import annotations

import argparse

from hidiff.cli.arguments import add_output, add_overwrite


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("model", metavar="MODEL", help="whatever `hidiff info` takes")
    add_output(parser, "a folder", required=True)
    add_overwrite(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from hidiff.weights.export import unpack
    from hidiff.weights.find import find_model

    for path in unpack(find_model(args.model), args.output, overwrite=args.overwrite):
        print(f"written to {path}")
    return 0
