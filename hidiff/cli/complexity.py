"""Count parameters and multiply-accumulates (MACs).

    hidiff complexity                              # rows of Tables 1 and 4
    hidiff complexity -opt options/train/GoPro_S2.yml --size 3 720 1280

Counts the networks that restore an image: Transformer, LE_DM and denoiser in stage 2, Transformer
and LE in stage 1. The denoiser runs T times an image; both totals are printed, with the denoiser
counted once and T times. Convolutions, linear layers and attention products count. The paper calls
MACs "FLOPs", and its counter (fvcore) also counts pooling, resizing and some normalisations, and
leaves out what the restored image does not need: the tables have a column that counts so.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "-opt", nargs="+", type=Path, metavar="FILE", help="option files, of train.py or test.py"
    )
    parser.add_argument(
        "--size",
        nargs=3,
        type=int,
        default=(3, 256, 256),
        metavar=("C", "H", "W"),
        help="image size (default: 3 256 256); sides are padded as in restoring",
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from hidiff.report.complexity import file_report, paper_report

    size = tuple(args.size)
    text, records = file_report(args.opt, size) if args.opt else paper_report(size)
    if args.json:
        print(json.dumps(records, indent=2))
    else:
        counted = "×".join(map(str, records[0]["size"]))
        print(f"image {counted}; one MAC is a multiplication and an addition\n\n{text}")
    return 0
