"""Bring data into the layout of datasets/README.md, or make it.

    hidiff prepare gopro    --source DOWNLOADS/GOPRO_Large
    hidiff prepare hide     --source DOWNLOADS/HIDE_dataset
    hidiff prepare realblur --source DOWNLOADS/RealBlur
    hidiff prepare lmdb     --input datasets/GoPro/crop/train/input_crops --output X.lmdb
    hidiff prepare quickstart

gopro, hide and realblur make the layout of links to the download (or copies, with --copy). Nothing
that exists is overwritten: a file that differs stops the program before it has changed anything. A
second run adds what is missing. lmdb stores the files' bytes as they are in a database, for file
systems that are slow with many small files; it needs the package lmdb. quickstart makes a small
data set of photographs that come with scikit-image.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hidiff.errors import UserError
from hidiff.files import is_file
from hidiff.prepare.layout import DOWNLOADS, place_all, summary
from hidiff.prepare.quickstart import make_quickstart


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="hidiff prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, source) in DOWNLOADS.items():
        command = commands.add_parser(name, help=f"--source is {source}")
        command.add_argument("--source", type=Path, required=True, metavar="DIR", help=source)
        command.add_argument(
            "--root", type=Path, default=Path("datasets"), help="the layout (default: datasets)"
        )
        how = command.add_mutually_exclusive_group()
        how.add_argument(
            "--link",
            action="store_true",
            help="link to the download, which must stay (default; copies where links do not work)",
        )
        how.add_argument(
            "--copy",
            action="store_true",
            help="copy; a picture's second place, under test/, is a link to the copy",
        )
    command = commands.add_parser("lmdb", help="a database of the images in a folder")
    command.add_argument("--input", required=True, metavar="DIR", help="the folder of images")
    command.add_argument(
        "--output", required=True, metavar="X.lmdb", help="the LMDB to make; must not exist"
    )
    command = commands.add_parser("quickstart", help="the data of scripts/quickstart.sh")
    command.add_argument(
        "--output",
        type=Path,
        default=Path("datasets/quickstart"),
        metavar="DIR",
        help="folder to make (default: datasets/quickstart)",
    )
    command.add_argument("--seed", type=int, default=0, help="0 or larger (default: 0)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code.

    Raises:
        UserError: a mistake in the call, the source or the folder to write to.
    """
    args = parse_arguments(arguments)
    if args.command == "lmdb":
        from hidiff.data.lmdb_store import create_lmdb

        print(f"{args.output}: {create_lmdb(args.input, args.output)} images")
    elif args.command == "quickstart":
        if args.seed < 0:
            raise UserError(f"--seed: {args.seed} is negative; give 0 or a larger number")
        made = make_quickstart(args.output, args.seed)
        print(f"{args.output}: {'made' if made else 'complete already; nothing to do'}")
    else:
        _place(args)
    return 0


def _place(args: argparse.Namespace) -> None:
    if not args.source.is_dir():
        what = "is no folder; unpack it" if is_file(args.source) else "does not exist"
        raise UserError(f"--source: {args.source.absolute()} {what}")
    placements = DOWNLOADS[args.command][0](args.source, args.root)
    placed = place_all(placements, args.root, copy=args.copy)
    print(f"{placed} files placed, {len(placements) - placed} there already")
    for line in summary(args.root, placements):
        print(line)
    if args.command == "gopro":
        print("Next: python generate_patches_gopro.py")
