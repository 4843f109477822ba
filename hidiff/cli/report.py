"""Put the scores of results folders into one table, beside those of the paper.

    hidiff report results/test_HI_Diff_GoPro -o report.md
    hidiff report results/A results/B results/nafnet_seed* --baseline results/A --page report.html
    hidiff report --curves my_S1 my_S2 -o curves.png

Read is the scores.json that `hidiff test` and `hidiff score` write. Trainings whose options differ
in the seed alone are one row with their standard deviation. With --baseline each row has its
difference from that folder, image by image, with a bootstrap interval.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hidiff.cli.arguments import add_output
from hidiff.utils.errors import UserError

MARK = "Written by `hidiff report`, which replaces this file."
"""Stands in every report, by which an earlier one is known."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add = parser.add_argument
    add("folders", nargs="*", type=Path, metavar="FOLDER", help="of results")
    add_output(parser, "the table in Markdown (default: print it); of --curves the picture")
    text = "the folder that the others differ from"
    add("--baseline", type=Path, metavar="FOLDER", help=text)
    text = "show the rows of these tables of the paper (default: what fits the training set)"
    tables = (1, 2, 3, 4)
    add("--paper", type=int, nargs="+", choices=tables, default=[], metavar="TABLE", help=text)
    add("--latex", action="store_true", help="the table for a paper (booktabs)")
    text = "write a page to look at the pictures"
    add("--page", type=Path, metavar="FILE.html", help=text)
    add("--embed", action="store_true", help="put the pictures into that page")
    text = "draw losses, learning rate and validation of trainings, from their logs"
    add("--curves", nargs="+", metavar="NAME", help=text)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    if args.curves:
        if args.folders or args.page or args.latex:
            raise UserError("--curves draws a picture of trainings and takes no results folders")
        from hidiff.report.curves import draw_curves

        picture = args.output or Path("curves.png")
        draw_curves(args.curves, picture)
        print(f"written to {picture}")
        return 0
    if not args.folders:
        raise UserError("name the results folders to report on, or trainings with --curves")
    if args.embed and not args.page:
        raise UserError("--embed puts the pictures into a page; give --page too")
    return _report(args)


def _report(args: argparse.Namespace) -> int:
    from hidiff.report.pictures import write_pictures
    from hidiff.report.rows import read_rows
    from hidiff.report.table import make_tables
    from hidiff.utils.files import write_text

    if args.output is not None and args.output.exists():
        written = args.output.is_file() and MARK in args.output.read_text("utf-8", "replace")
        if not written:
            raise UserError(f"{args.output} is no report of this command; choose another name")
    folders = [*args.folders, *([args.baseline] if args.baseline else [])]
    rows = read_rows(folders)
    label = None
    if args.baseline is not None:
        label = next(row.label for row in rows if args.baseline.resolve() in row.folders)
    tables = make_tables(rows, baseline=label, paper=args.paper)
    lines = [line for table in tables for line in (table.latex if args.latex else table.markdown)()]
    text = "\n".join(lines).rstrip() + "\n"
    if args.output is None:
        print(text, end="")
    else:
        mark = f"% {MARK}" if args.latex else f"<!-- {MARK} -->"
        write_text(args.output, f"{mark}\n\n{text}")
        print(f"written to {args.output}")
    if args.page is not None:
        for line in write_pictures(args.page, rows, baseline=label, embed=args.embed):
            print(f"not on the page: {line}")
        print(f"to look at: {args.page}")
    return 0
