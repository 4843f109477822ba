"""Write a model as one ONNX file: hidiff export MODEL -o model.onnx."""

from __future__ import annotations

import argparse
from pathlib import Path

from hidiff.cli.arguments import add_overwrite

EPILOG = """\
The file takes an image (1, 3, H, W), RGB in [0, 1], and gives the restored one; the reverse chain
is inside. The starting noise is a second input with a fixed default. docs/onnx.md shows how to run
it.

  hidiff export bundled -o model.onnx                  for all sides that are multiples of 8
  hidiff export bundled -o model.onnx --size 720 1280  for one size only"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="as of restore's --model")
    add("-o", "--output", type=Path, required=True, metavar="FILE.onnx")
    text = "one size only (default: all sizes that fit the network)"
    add("--size", type=int, nargs=2, metavar=("H", "W"), help=text)
    add("--half", action="store_true", help="weights and arithmetic in float16")
    add_overwrite(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from hidiff.restore.onnx import export_onnx
    from hidiff.utils.errors import UserError
    from hidiff.weights.find import load_model

    if args.output.suffix != ".onnx":
        raise UserError(f"{args.output}: the name of an ONNX file ends in .onnx")
    if args.output.exists() and not args.overwrite:
        raise UserError(f"{args.output} exists; take another name, or add --overwrite")
    loaded = load_model(args.model)
    size = None if args.size is None else (args.size[0], args.size[1])
    export_onnx(loaded.model, args.output, size=size, half=args.half)
    print(f"{args.output}: {loaded.description}")
    return 0
