"""What command lines share: the same flag has the same name, meaning and default everywhere.

Nothing heavy is imported here: `hidiff COMMAND --help` is to be quick.
"""

from __future__ import annotations

import argparse
from pathlib import Path

LAUNCHERS = ("none", "pytorch", "slurm")
PRECISIONS = ("fp32", "tf32", "bf16")
PROTOCOLS = ("basicsr", "matlab", "realblur")
LOCAL_MODES = ("none", "tile", "tlc")


def at_least_one(text: str) -> int:
    """A whole number from 1 on, as `type=` of an argument.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text}")
    return number


def add_option_file(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the release's `-opt` and `--force_yml`."""
    text = "YAML option file"
    parser.add_argument("-opt", "--opt", type=Path, required=required, metavar="FILE", help=text)
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add the release's `--force_yml`, which may be given several times."""
    parser.add_argument(
        "--force_yml",
        nargs="+",
        action="extend",
        default=[],
        metavar="SECTION:OPTION=VALUE",
        help="set options of the file, for example train:total_iter=1000",
    )


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """Add `--launcher` and torch.distributed.launch's `--local_rank`."""
    parser.add_argument(
        "--launcher",
        choices=LAUNCHERS,
        default="none",
        help="none: one process; pytorch: torchrun or torch.distributed.launch; slurm: srun",
    )
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)


def add_model(
    parser: argparse.ArgumentParser, *, default: str | None = None, text: str | None = None
) -> None:
    """Add `-m`, `--model`: what `hidiff.weights.find.find_model` takes.

    Args:
        parser: of the command.
        default: the model where none is named.
        text: what happens then, in words; None: the default.
    """
    parser.add_argument(
        "-m",
        "--model",
        default=default,
        metavar="MODEL",
        help="a training's name (NAME, NAME@best, NAME@STEP), a model file or folder, a "
        f"downloaded model's name, bundled, or hf:OWNER/NAME (default: {text or default})",
    )


def add_data(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add `--data`: a folder of pairs, as `hidiff.data.pairs.find_pairs` finds them."""
    parser.add_argument(
        "--data",
        type=Path,
        required=required,
        metavar="DIR",
        help="folder of pairs: input and target, blur and sharp, or lq and gt, or scenes with them",
    )


def add_output(parser: argparse.ArgumentParser, text: str, *, required: bool = False) -> None:
    """Add `-o`, `--output`, explained by `text`."""
    parser.add_argument("-o", "--output", type=Path, required=required, metavar="OUT", help=text)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument(
        "--device", default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:NUMBER"
    )


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add `--precision`."""
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="tf32", help="default: %(default)s"
    )


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Add `--jobs`; None stands for one a core."""
    text = "processes or threads (default: one a core)"
    parser.add_argument("--jobs", type=at_least_one, metavar="N", help=text)


def add_size(parser: argparse.ArgumentParser) -> None:
    """Add `--size H W` of an image."""
    text = "of the image, in pixels (default: 256 256)"
    size, names = (256, 256), ("H", "W")
    parser.add_argument(
        "--size", type=at_least_one, nargs=2, default=size, metavar=names, help=text
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    text = "print JSON in place of the table"
    parser.add_argument("--json", action="store_true", help=text)


def add_overwrite(parser: argparse.ArgumentParser, text: str = "replace what exists") -> None:
    """Add `--overwrite`, explained by `text`."""
    parser.add_argument("--overwrite", action="store_true", help=text)


def add_seeds(parser: argparse.ArgumentParser, text: str) -> None:
    """Add `--seeds K`, how many different noises an image is restored from; see `text`."""
    parser.add_argument("--seeds", type=at_least_one, default=1, metavar="K", help=text)
