"""Compare models, and folders of pictures, on one data set.

    hidiff compare train_A train_B@best bundled --data DIR
    hidiff compare A=first.safetensors "B=options/baselines/hinet.yml@HINet.pth" --data FILE.yml
    hidiff compare bundled tiled=bundled blurry=DIR/input --data DIR --local tiled=tile

DIR holds folders of blurry and of sharp images with the same names: input and target, blur and
sharp, or lq and gt. A MODEL is what `hidiff restore -m` takes (an experiment's name, a packed file,
a folder of weights, bundled), an option file as of test.py, with its weights behind an @ if it does
not name them, or a folder of restored pictures. Every model restores by the rules of its own
network. Written are results/NAME/compare.md, .csv and .html; the restored images and their scores
are in results/NAME_LABEL.
"""

from __future__ import annotations

import argparse
import logging
import os
from typing import TYPE_CHECKING, get_args

from hidiff.cli.restore import find_device
from hidiff.utils.errors import UserError, require_positive, suggestion

if TYPE_CHECKING:
    from hidiff.report.candidates import Asked

LOG = logging.getLogger("hidiff")


EPILOG = (
    "A call that was ended goes on where it stopped. Exit code: 0 all compared, 1 a "
    "model or an image is left out, 2 a mistake in the call, 130 Ctrl-C."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("models", nargs="+", metavar="[LABEL=]MODEL")
    parser.add_argument(
        "--data", required=True, metavar="DIR", help="folder of pairs, or an option file"
    )
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="which test set of the option file; or how to call the folder's",
    )
    parser.add_argument(
        "-o", "--output", metavar="NAME", help="of the comparison; default: compare_DATASET"
    )
    parser.add_argument(
        "--protocol",
        choices=("basicsr", "matlab", "realblur"),
        help="default: that of the published scores, for other data sets basicsr",
    )
    parser.add_argument(
        "--baseline", metavar="LABEL", help="whom the others are compared with; default: the first"
    )
    parser.add_argument(
        "--local",
        action="append",
        default=[],
        metavar="[LABEL=]MODE",
        help="none, tile, tlc: of one model or of all, see hidiff restore; "
        "default: the model's own, else none",
    )
    parser.add_argument("--size", type=int, help="of tiles and windows, see hidiff restore")
    parser.add_argument("--overlap", type=int, help="of them")
    parser.add_argument(
        "--precision",
        action="append",
        default=[],
        metavar="[LABEL=]PRECISION",
        help="fp32, tf32, bf16: of one model or of all; default: the model's own, else tf32",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        metavar="N",
        help="how often restoring an image is timed, 0 for never; default: %(default)s",
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=1,
        metavar="N",
        help="images of each pair's largest differences on either side; default: %(default)s",
    )
    parser.add_argument(
        "--resamples",
        type=int,
        default=10000,
        metavar="N",
        help="of the bootstrap; default: %(default)s",
    )
    parser.add_argument(
        "--seed", type=int, default=100, help="of noise and bootstrap; default: %(default)s"
    )
    parser.add_argument(
        "--device", default="auto", help="auto (a GPU if there is one), cpu, cuda:0"
    )


def checked(args: argparse.Namespace) -> Asked:
    """What the command line asks for.

    Raises:
        UserError: a label, a data set or a value that cannot be.
    """
    from hidiff.metrics.published import published_protocol
    from hidiff.options import LocalMode, Precision
    from hidiff.report.candidates import Asked, by_label, file_name, find_data, parse_models
    from hidiff.restore.run import local_options

    if args.repeats < 0 or args.pictures < 0:
        raise UserError("--repeats and --pictures must be at least 0")
    require_positive(**{"--resamples": args.resamples, "--seed": args.seed + 1})
    models = parse_models(args.models)
    if args.baseline is not None and args.baseline not in models:
        raise UserError(
            f"--baseline: no model is called '{args.baseline}'{suggestion(args.baseline, models)}"
        )
    data = find_data(args.data, args.dataset)
    name = args.output or f"compare_{data.name}"
    if file_name(name) != name:
        raise UserError(f"-o {name}: becomes a folder's name; use letters, digits, and . + - _")
    local = by_label(args.local, models, get_args(LocalMode), "--local")
    if args.size or args.overlap:
        local_options("none", size=args.size, overlap=args.overlap, patch_size=None)
    return Asked(
        models=models,
        data=data,
        name=name,
        protocol=args.protocol or published_protocol(data.name),
        baseline=args.baseline or next(iter(models)),
        local=local,
        precision=by_label(args.precision, models, get_args(Precision), "--precision"),
        size=args.size,
        overlap=args.overlap,
        repeats=args.repeats,
        pictures=args.pictures,
        resamples=args.resamples,
        seed=args.seed,
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code.

    Raises:
        UserError: a mistake in the call, or nothing is left to compare.
    """
    from hidiff.engine.logger import start_logging
    from hidiff.report.page import write_comparison
    from hidiff.report.run import compare, failures
    from hidiff.report.table import csv_text, differences_table, markdown_lines, models_table
    from hidiff.restore.page import check_replaceable
    from hidiff.utils.distributed import Processes
    from hidiff.utils.files import write_text
    from hidiff.utils.tables import text_table
    from hidiff.weights.experiment import RESULTS

    asked = checked(args)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("hidiff compare is one process; start it without torchrun and srun")
    folder = RESULTS / asked.name
    page = folder / "compare.html"
    check_replaceable(page)
    if folder.exists() and not page.exists():
        raise UserError(f"-o {asked.name}: {folder} exists and is no comparison; choose another")
    start_logging(is_main=True)
    comparison = compare(asked, Processes(0, 1, find_device(args.device)))
    write_text(folder / "compare.md", "\n".join(markdown_lines(comparison)) + "\n")
    write_text(folder / "compare.csv", csv_text(comparison))
    write_comparison(comparison, page)
    for header, rows in (models_table(comparison), differences_table(comparison)):
        for line in text_table(header, rows) if rows else ():
            LOG.info(line)
    for label, reason in comparison.left_out.items():
        LOG.error("%s is left out: %s", label, reason)
    for label, outcome in comparison.outcomes.items():
        for line in failures(outcome):
            LOG.error("%s has no score of %s", label, line)
    LOG.info("to look at: %s", page)
    return 0 if comparison.complete else 1
