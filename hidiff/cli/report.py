"""Write the paper's tables with this project's figures beside the published ones.

hidiff report --results results/test_HI_Diff_GoPro --output report.md --page
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hidiff.cli.arguments import named_folders
from hidiff.utils.errors import UserError

if TYPE_CHECKING:
    from hidiff.evaluation.record import Scores
    from hidiff.report.published_tables import Results

MARK = "<!-- Written by `hidiff report`, which replaces this file and its picture. -->"


def check_replaceable(report: Path, picture: Path) -> None:
    """Make sure that writing the two files loses nothing but an earlier report.

    Raises:
        UserError: a file is there that this program has not written, or the report is no .md.
    """
    if report.suffix != ".md":
        raise UserError(f"--output {report}: expected a name that ends in .md")
    text = ""
    if report.exists():
        try:
            text = report.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            text = ""
        if not text.startswith(MARK):
            raise UserError(f"--output: {report} exists and is no report of this program")
    if picture.exists() and f"({picture.name})" not in text:
        raise UserError(
            f"--output: the pictures would go to {picture}, which exists and belongs to no earlier "
            "report; choose another name"
        )


Photographs = list[tuple[str, "Scores", dict[str, dict[str, Path]]]]
"""What there is to look at: a title, the scores, and the files of each photograph."""


def find_photographs(results: Results, data: dict[str, Path]) -> Photographs:
    """The images of everything that was scored and has them here; why others have not is printed.

    Args:
        data: folders with `input` and `target` by data set, where they are not those of the test
            run or the layout's.
    """
    from hidiff.report.published_tables import photograph_files

    found = {}
    for (folder, _), sets in results.items():
        # Of several scores of a data set, that by the published protocol.
        for scores in sorted(sets, key=lambda s: s.protocol == (s.benchmark or s).protocol):
            found[folder, scores.dataset] = scores
    photographs = []
    for (folder, dataset), scores in found.items():
        try:
            files = photograph_files(folder, scores, data.get(dataset))
        except UserError as error:
            print(f"no pictures of {dataset} in {folder}: {error}")
        else:
            photographs.append((f"{folder.resolve().name} {dataset}", scores, files))
    return photographs


def draw(photographs: Photographs, count: int, picture: Path) -> list[str]:
    """Write the comparison sheet.

    Args:
        count: photographs for each result folder and data set.

    Returns:
        What the report says about it; empty when there is nothing to draw. Why a data set is not
        drawn is printed.

    Raises:
        UserError: the picture cannot be written.
    """
    from hidiff.data.image import write_image
    from hidiff.metrics.published import BENCHMARKS
    from hidiff.report.sheet import DETAIL, comparison_sheet, report_rows

    rows = []
    for title, scores, files in photographs:
        protocol = (scores.benchmark or scores).protocol
        try:
            rows += report_rows(files, title=title, protocol=protocol, count=count)
        except UserError as error:
            print(f"no pictures of {title}: {error}")
    if not rows:
        return []
    write_image(picture, comparison_sheet(rows))
    height, width = DETAIL
    return [
        "## Pictures",
        "",
        f"![blurry, restored and sharp photographs]({picture.name})",
        "",
        f"Each picture shows at most {width}×{height} pixels of a photograph, around its strongest "
        "edges, and the framed part of that enlarged below. PSNR is that of the whole photograph "
        "by the protocol of the benchmark "
        f"({', '.join(f'{b.title}: {b.protocol}' for b in BENCHMARKS.values())}), of other data "
        "sets that of their score.",
        "",
    ]


def write_comparisons(photographs: Photographs, page: Path, *, embed: bool) -> list[str]:
    """Write the page of all photographs; those that cannot be compared are printed.

    Returns:
        What the report says about it; empty when there is nothing to compare.

    Raises:
        UserError: the page cannot be written, or no photograph is whole.
    """
    from hidiff.report.published_tables import comparisons
    from hidiff.restore.page import write_page

    if not photographs:
        return []
    titles = [
        f"{title}, protocol {scores.protocol}" + f", local {scores.local}" * bool(scores.local)
        for title, scores, _ in photographs
    ]
    alone = len(titles) == 1
    entries = [
        entry
        for title, (_, scores, files) in zip(titles, photographs, strict=True)
        for entry in comparisons(files, scores, title="" if alone else f"{title}:")
    ]
    title = titles[0] if alone else "Blurry and restored photographs"
    for name, reason in write_page(page, entries, title=title, embed=embed).items():
        print(f"{name} is not on the page: {reason}")
    return [f"All photographs, before and after: [{page.name}]({page.name})", ""]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "--results",
        nargs="+",
        required=True,
        metavar="FOLDER[=MODEL]",
        help="result folders; MODEL says which model of the paper a folder belongs to "
        "(default: what the folder's name mentions, else GoPro)",
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE.md", help="the report to write"
    )
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="NAME=DIR",
        help="folders with input and target, for the pictures (default: those that the test run "
        "read, or those under datasets/)",
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=1,
        metavar="N",
        help="photographs to show of each folder and data set; 0 for none (default: 1)",
    )
    parser.add_argument(
        "--page",
        action="store_true",
        help="also write a page (.html, beside the report) to look at all photographs before and "
        "after, with a slider and zoom, in any browser",
    )
    parser.add_argument(
        "--embed",
        action="store_true",
        help="put the photographs into that page, which can then be sent alone",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code.

    Raises:
        UserError: a mistake in the call, or folders without scores.
    """
    from hidiff.metrics.published import BENCHMARKS
    from hidiff.report.published_tables import (
        collect_results,
        parse_result_folder,
        report_lines,
    )
    from hidiff.restore.page import check_replaceable as check_page
    from hidiff.utils.files import write_text

    if args.pictures < 0:
        raise UserError(f"--pictures: must be at least 0, not {args.pictures}")
    if args.embed and not args.page:
        raise UserError("--embed: puts the photographs into a page; give --page too")
    picture, page = args.output.with_suffix(".png"), args.output.with_suffix(".html")
    check_replaceable(args.output, picture)
    if args.page:
        check_page(page)
    results: Results = {}
    for text in args.results:
        folder, model, guessed = parse_result_folder(text)
        if guessed:
            print(f"{folder}: taken as HI-Diff trained on GoPro; FOLDER=MODEL says otherwise")
        results[folder, model] = collect_results(folder)
    scored = [data.dataset for sets in results.values() for data in sets]
    names = dict.fromkeys([*BENCHMARKS, *scored])
    data = named_folders(args.data, names, "--data")
    lines = report_lines(results)
    photographs = find_photographs(results, data) if args.pictures or args.page else []
    pictures = draw(photographs, args.pictures, picture) if args.pictures else []
    pages = write_comparisons(photographs, page, embed=args.embed) if args.page else []
    text = [MARK, "", "# Results beside the paper's", "", *lines, *pictures, *pages]
    write_text(args.output, "\n".join(text).rstrip() + "\n")
    written = [
        str(args.output),
        *([picture.name] if pictures else []),
        *([page.name] if pages else []),
    ]
    print(f"written to {' and '.join(written)}")
    return 0
