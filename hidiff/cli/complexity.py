#!/usr/bin/env python
"""Count parameters and multiply-accumulates (MACs).

    python scripts/model_complexity.py                              # rows of Tables 1 and 4
    python scripts/model_complexity.py -opt options/train/GoPro_S2.yml --size 3 720 1280

Counts the networks that restore an image: Transformer, LE_DM and denoiser in stage 2, Transformer
and LE in stage 1. The denoiser runs T times an image; both totals are printed, with the denoiser
counted once and T times. Convolutions, linear layers and attention products count. The paper calls
MACs "FLOPs".
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hidiff.benchmark.macs import Complexity, model_complexity  # noqa: E402
from hidiff.errors import friendly_errors  # noqa: E402
from hidiff.metrics.published import HI_DIFF, HI_DIFF_2, find_row  # noqa: E402
from hidiff.options import load_options  # noqa: E402

PAPER_SIZE = (3, 256, 256)


RESTORMER = {"model_type": "Restormer", "network_g": {"type": "Transformer", "guidance": "none"}}
"""Restormer's own sizes are the Transformer's defaults."""

PAPER_ROWS: tuple[tuple[int, str, str | dict[str, Any]], ...] = (
    (1, "Baseline", "options/ablation/Baseline.yml"),
    (1, "Single-Guide", "options/ablation/Single_Guide_S2.yml"),
    (1, "Split-Training", "options/ablation/Split_Training_S2.yml"),
    (1, HI_DIFF, "options/ablation/HI_Diff_S2.yml"),
    (4, "Restormer", RESTORMER),
    (4, HI_DIFF, "options/train/GoPro_S2.yml"),
    (4, HI_DIFF_2, "options/ablation/HI_Diff_S2.yml"),
)
"""The rows of the paper that can be built here: table, method, and option file or sections."""


def as_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in aligned columns, the first row as header; numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def record(name: str, counted: Complexity) -> dict[str, Any]:
    """What --json writes about one model."""
    return {
        "name": name,
        "size": list(counted.size),
        "timesteps": counted.timesteps,
        "parameters": counted.parameters,
        "macs_denoiser_once": counted.macs_once,
        "macs": counted.macs,
        "networks": {key: asdict(network) for key, network in counted.networks.items()},
    }


def paper_report(size: tuple[int, int, int]) -> tuple[str, list[dict[str, Any]]]:
    """The rows of Tables 1 and 4 as text and as records."""
    rows = [["model", "params M", "paper", "MACs G once", "× T", "T", "paper"]]
    records = []
    for table, method, options in PAPER_ROWS:
        paper = find_row(table, method)
        if isinstance(options, str):
            options = load_options(ROOT / options).sections
        counted = model_complexity(options, size)
        comparable = counted.size == PAPER_SIZE
        rows.append(
            [
                f"Table {table}  {method}",
                f"{counted.parameters / 1e6:.3f}",
                f"{paper.parameters:.2f}",
                f"{counted.macs_once / 1e9:.3f}",
                f"{counted.macs / 1e9:.3f}",
                str(counted.timesteps),
                f"{paper.macs:.2f}" if comparable else "-",
            ]
        )
        records.append(
            {
                **record(f"Table {table} {method}", counted),
                "paper_parameters_m": paper.parameters,
                "paper_macs_g": paper.macs if comparable else None,
            }
        )
    return as_table(rows), records


def file_report(
    files: Sequence[Path], size: tuple[int, int, int]
) -> tuple[str, list[dict[str, Any]]]:
    """Every network of the option files, as text and as records."""
    parts, records = [], []
    for file in files:
        counted = model_complexity(load_options(file).sections, size)
        rows = [["network", "params M", "MACs G a call", "calls", "MACs G"]]
        for name, network in counted.networks.items():
            rows.append(
                [
                    name,
                    f"{network.parameters / 1e6:.3f}",
                    f"{network.macs / 1e9:.3f}",
                    str(network.calls),
                    f"{network.macs * network.calls / 1e9:.3f}",
                ]
            )
        rows.append(
            [
                "total",
                f"{counted.parameters / 1e6:.3f}",
                f"{counted.macs_once / 1e9:.3f}",
                "",
                f"{counted.macs / 1e9:.3f}",
            ]
        )
        parts.append(f"{file}\n{as_table(rows)}")
        records.append(record(str(file), counted))
    return "\n\n".join(parts), records


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "-opt", nargs="+", type=Path, metavar="FILE", help="option files, of train.py or test.py"
    )
    parser.add_argument(
        "--size",
        nargs=3,
        type=int,
        default=PAPER_SIZE,
        metavar=("C", "H", "W"),
        help="image size (default: 3 256 256); sides are padded to multiples of 8 as in restoring",
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    args = parser.parse_args(arguments)
    with friendly_errors():
        size = tuple(args.size)
        text, records = file_report(args.opt, size) if args.opt else paper_report(size)
        if args.json:
            print(json.dumps(records, indent=2))
        else:
            counted = "×".join(map(str, records[0]["size"]))
            print(f"image {counted}; one MAC is a multiplication and an addition\n\n{text}")


if __name__ == "__main__":
    main()
