"""Write the paper's tables with this project's figures beside the published ones.

hidiff report --results results/test_HI_Diff_GoPro --output report.md
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hidiff.cli.arguments import named_folders
from hidiff.data.image import write_image
from hidiff.errors import UserError
from hidiff.files import write_text
from hidiff.metrics.published import BENCHMARKS
from hidiff.paper.report import (
    MODELS,
    Results,
    collect_results,
    parse_result_folder,
    report_lines,
)
from hidiff.paper.sheet import DETAIL, comparison_sheet, report_rows
from hidiff.scoring.folders import find_data, restored_folder

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


def draw(results: Results, data: dict[str, Path], count: int, picture: Path) -> list[str]:
    """Write the comparison sheet of everything that was scored and has its images here.

    Args:
        data: folders with `input` and `target` by data set, where they are not the layout's.
        count: photographs for each result folder and data set.

    Returns:
        What the report says about it; empty when there is nothing to draw. Why a data set is not
        drawn is printed.

    Raises:
        UserError: the picture cannot be written.
    """
    rows = []
    scored = {
        (folder, scores.dataset): (scores.benchmark or scores).protocol
        for (folder, _), sets in results.items()
        for scores in sets
    }
    for (folder, dataset), protocol in scored.items():
        source, restored = data.get(dataset) or find_data(dataset), restored_folder(folder, dataset)
        title = f"{folder.resolve().name} {dataset}"
        reason = None
        if source is None:
            reason = f"its images are not here; name them with --data {dataset}=DIR"
        elif not restored.is_dir():
            reason = f"{restored} does not exist"
        else:
            try:
                rows += report_rows(restored, source, title=title, protocol=protocol, count=count)
            except UserError as error:
                reason = str(error)
        if reason:
            print(f"no pictures of {dataset} in {folder}: {reason}")
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


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code.

    Raises:
        UserError: a mistake in the call, or folders without scores.
    """
    parser = argparse.ArgumentParser(
        description="Write the paper's tables in Markdown with the figures of result folders "
        "beside the published ones, and a comparison sheet beside it (.png).",
        epilog="Read is the scores.json that test.py and `hidiff score` write; where a data set "
        "has several scores, the one of the published protocol is compared. An earlier report and "
        "its picture are replaced, other files never. Exit code: 0, or 2 for a mistake in the "
        "call.",
    )
    parser.add_argument(
        "--results",
        nargs="+",
        required=True,
        metavar="FOLDER[=MODEL]",
        help="result folders; MODEL says which model of the paper a folder belongs to "
        f"({', '.join(MODELS)}; default: what the folder's name mentions, else GoPro)",
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE.md", help="the report to write"
    )
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="NAME=DIR",
        help="folders with input and target, for the pictures (default: those under datasets/)",
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=1,
        metavar="N",
        help="photographs to show of each folder and data set; 0 for none (default: 1)",
    )
    args = parser.parse_args(arguments)
    if args.pictures < 0:
        raise UserError(f"--pictures: must be at least 0, not {args.pictures}")
    picture = args.output.with_suffix(".png")
    check_replaceable(args.output, picture)
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
    pictures = draw(results, data, args.pictures, picture) if args.pictures else []
    text = [MARK, "", "# Results beside the paper's", "", *lines, *pictures]
    write_text(args.output, "\n".join(text).rstrip() + "\n")
    print(f"written to {args.output}" + (f" and {picture.name}" if pictures else ""))
    return 0
