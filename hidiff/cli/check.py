"""Check data sets before training or testing with them.

    hidiff check                             all of the layout under datasets/
    hidiff check -opt options/train/GoPro_S1.yml
    hidiff check --data DIR
    hidiff check --input DIR --target DIR

Lists what is wrong with pairs: missing partners, sizes that differ, damaged images, orientation,
bands or pages that are not read, swapped folders, identical sides, training images in the
validation, and with --align misaligned pairs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hidiff.cli.arguments import add_jobs, at_least_one
from hidiff.utils.errors import UserError

if TYPE_CHECKING:
    from hidiff.prepare.check import DataSource, Report
    from hidiff.prepare.layout import LayoutEntry

EPILOG = (
    "Exit code: 0 all good, 1 problems found, 2 a mistake in the call. Relative paths, "
    "also those in option files, count from the current folder."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group()
    what.add_argument("-opt", type=Path, metavar="FILE", help="check this option file's data sets")
    text = "check the layout (default: datasets)"
    what.add_argument("--root", type=Path, default=Path("datasets"), help=text)
    what.add_argument("--data", metavar="DIR", help="check one folder of pairs, in any layout")
    what.add_argument("--input", metavar="DIR", help="check one folder or LMDB of blurry images")
    add("--target", metavar="DIR", help="the sharp images of --input")
    text = "report images smaller than N pixels (default with -opt: the data set's gt_size)"
    add("--patch", type=at_least_one, metavar="N", help=text)
    text = "read headers only: truncated files are not noticed"
    add("--fast", action="store_true", help=text)
    add("--align", action="store_true", help="look for misaligned pairs too (slow; by ECC)")
    add_jobs(parser)


def find_sources(args: argparse.Namespace) -> tuple[list[DataSource], list[LayoutEntry]]:
    """The data sets to check, and those of the layout that are not there.

    Raises:
        UserError: there is nothing to check.
    """
    from hidiff.data.pairs import find_pairs
    from hidiff.prepare.check import DataSource, dataset_folders, layout_sources

    if args.data is not None:
        find_pairs(args.data, where="--data", complete=False)
        return [DataSource(args.data, args.data, args.data, whole=True)], []
    if args.input is not None:
        find_pairs(
            blurry=args.input,
            sharp=args.target,
            where="--input, --target",
            sides=("--input", "--target"),
            complete=False,
        )
        name = args.input if args.target is None else f"{args.input}, {args.target}"
        return [DataSource(name, args.input, args.target)], []
    if args.opt is not None:
        return dataset_folders(args.opt), []
    return layout_sources(args.root)


def count_of(number: int, thing: str) -> str:
    """'1 pair', '2 pairs'."""
    return f"{number} {thing}" + ("" if number == 1 else "s")


def show(source: DataSource, report: Report) -> None:
    """Print what was found in a data set."""
    entry = source.layout_entry()
    wanted = f" (the benchmark: {entry.pairs})" if entry is not None else ""
    pairs = count_of(len(report.pairs), "pair" if source.gt is not None else "image")
    state = count_of(len(report.problems), "problem") if report.problems else "ok"
    print(f"{report.name}: {pairs}{wanted}: {state}")
    for problem in report.problems:
        print(f"  problem: {problem}")
    for note in report.notes:
        print(f"  note: {note}")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from hidiff.prepare.check import check_dataset, shared_images
    from hidiff.utils.workers import available_cores

    if args.target is not None and args.input is None:
        raise UserError("--target: give the blurry images too, with --input")
    if args.align and args.fast:
        raise UserError("--align: pixels are needed for it; leave --fast out")
    sources, absent = find_sources(args)
    reports = []
    for source in sources:
        report = check_dataset(
            source,
            patch_size=args.patch,
            fast=args.fast,
            align=args.align,
            jobs=args.jobs or available_cores(),
        )
        show(source, report)
        reports.append(report)
    shared = shared_images(reports) if args.opt is not None else []
    for problem in shared:
        print(f"problem: {problem}")
    problems = sum(len(report.problems) for report in reports) + len(shared)
    for entry in absent:
        print(f"{entry.name}: not there ({entry.pairs} pairs; made by {entry.command})")
    if args.fast:
        print("Only headers were read; without --fast damaged and truncated images are found too.")
    if problems:
        found = count_of(problems, "problem")
        print(f"{found}; datasets/README.md (Checking) says how each kind is mended.")
        return 1
    print(f"All good: {count_of(len(sources), 'data set')}.")
    return 0
