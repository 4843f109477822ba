"""Count parameters and multiply-accumulates (MACs).

    hidiff complexity                              # rows of Tables 1 and 4
    hidiff complexity -opt options/train/GoPro_S2.yml --size 720 1280

Counts the networks that restore an image: Transformer, LE_DM and denoiser in stage 2, Transformer
and LE in stage 1. The denoiser runs T times an image; both totals are printed, with the denoiser
counted once and T times. Convolutions, linear layers and attention products count; the paper calls
them "FLOPs", and its counter adds pooling, resizing and some normalisations.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hidiff.cli.arguments import add_json, add_size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    text = "option files (default: the rows of Tables 1 and 4)"
    parser.add_argument("-opt", "--opt", type=Path, nargs="+", metavar="FILE", help=text)
    add_size(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from hidiff.report.complexity import file_report, paper_report

    size = tuple(args.size)
    lines, records = file_report(args.opt, size) if args.opt else paper_report(size)
    print(json.dumps(records, indent=2) if args.json else "\n".join(lines).rstrip())
    return 0
