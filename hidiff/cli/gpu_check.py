"""Measure everything about a GPU that can be measured in minutes.

    bash scripts/gpu_check.sh
    hidiff gpu-check --minutes 20 --items training compile

Networks against float64, the Triton kernels, time and memory of training and restoring in every
precision, torch.compile, deterministic algorithms, resuming, several processes, training in bf16
against fp32, and the loader. Every item has a verdict and its figures in report.md and report.json
in the output folder, which are written after every figure; log.txt has what the trainings say. At
the end come the options that the figures speak for. The exit code is 1 where a verdict is negative.
Without a GPU everything is tiny, which only shows that the check works.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from hidiff.benchmark.gpu_check import ITEMS, GpuCheck, checked_names
from hidiff.cli.restore import find_device
from hidiff.errors import require_positive


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code.

    Raises:
        UserError: there is no such device or item, or the report cannot be written.
    """
    # cuBLAS reads it once, before its first product, and has no deterministic form without it. The
    # workspace is the size that PyTorch takes on an H100 anyway.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8, help="for all items; default: 8")
    parser.add_argument(
        "--device", default="auto", help="auto (a GPU if there is one), cpu, cuda:0"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("results/gpu_check"), help="folder of the report"
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("datasets/quickstart"),
        help="folder with train/{input,target} and test/{input,target}; made where there is none",
    )
    parser.add_argument(
        "--items",
        nargs="+",
        metavar="NAME",
        help=f"of {', '.join(ITEMS)}; default: all. Earlier figures of the others are kept",
    )
    args = parser.parse_args(arguments)
    require_positive(**{"--minutes": args.minutes})
    device = find_device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    names = checked_names(args.items)
    return GpuCheck(device, args.output, args.data, args.minutes, names).run()
