"""Restore photographs.

    hidiff restore photo.jpg -o restored
    hidiff restore holidays --recursive -o restored --compare

What stands beside the pixels is kept: orientation (applied), colour profile, EXIF, texts,
resolution, transparency; 16 bits stay 16 bits.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hidiff.cli.arguments import at_least_one
from hidiff.utils.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LOG = logging.getLogger("hidiff")

PAGE = "compare.html"
"""Name of the page in the folder of the results."""


EPILOG = (
    "Exit code: 0 all restored, 1 some failed, 2 a mistake in the call, 130 Ctrl-C: "
    "what is finished stays, and the same call restores the rest."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("inputs", nargs="+", type=Path, metavar="PHOTO_OR_FOLDER")
    parser.add_argument("-o", "--out", required=True, type=Path, metavar="OUT", help="a folder")
    parser.add_argument(
        "-m",
        "--model",
        metavar="MODEL",
        help="a training's name or folder (NAME, NAME@best, NAME@12000), a packed file, or a "
        "folder with net_*.pth; default: weights in experiments/pretrained_models, else the model "
        "that comes with the package (bundled)",
    )
    parser.add_argument("--recursive", action="store_true", help="search sub-folders too")
    parser.add_argument(
        "--precision", choices=("fp32", "tf32", "bf16"), default="tf32", help="default: tf32"
    )
    parser.add_argument(
        "--ensemble",
        action="store_true",
        help="the mean over the image's 8 symmetries: 8 times as long, a little better",
    )
    parser.add_argument(
        "--seeds",
        type=at_least_one,
        default=1,
        metavar="K",
        help="the mean of K restorations from different noise: K times as long",
    )
    parser.add_argument(
        "--local",
        choices=("none", "tile", "tlc"),
        default="none",
        help="tile: overlapping tiles, each with a prior of its own, blended; tlc: the attention's "
        "statistics of overlapping windows; default: none, the whole image as the paper has it",
    )
    parser.add_argument(
        "--size",
        type=int,
        help="of one, in pixels, a multiple of 8; default: the patch size of the training",
    )
    parser.add_argument(
        "--overlap",
        type=int,
        help="of them, in pixels; default: 32, or half the size if that is less",
    )
    parser.add_argument("--suffix", default="", metavar="TEXT", help="added to the results' names")
    parser.add_argument(
        "--format",
        choices=("auto", "png", "jpg", "tif", "webp", "bmp"),
        default="auto",
        help="auto: that of each photograph",
    )
    parser.add_argument("--compare", action="store_true", help=f"write OUT/{PAGE}, to look at them")
    parser.add_argument("--embed", action="store_true", help="put the pictures into that page")
    parser.add_argument("--overwrite", action="store_true", help="replace results that exist")
    parser.add_argument(
        "--device", default="auto", help="auto (a GPU if there is one), cpu, cuda:0"
    )


def find_device(name: str) -> torch.device:
    """The device of --device.

    Raises:
        UserError: there is no such one.
    """
    import torch

    count = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda") or (device.index or 0) >= max(count, 1):
        raise UserError(f"--device: there is no '{name}'; use auto, cpu, cuda or cuda:NUMBER")
    if device.type == "cuda" and not count:
        raise UserError("--device: PyTorch finds no GPU here; use auto or cpu")
    return device


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code.

    Raises:
        UserError: a mistake in the call.
    """
    from hidiff.engine.logger import start_logging
    from hidiff.restore.image import restore_image
    from hidiff.restore.page import Comparison, check_replaceable, write_page
    from hidiff.restore.run import (
        find_jobs,
        local_options,
        prepare_folder,
        restore_photos,
    )
    from hidiff.utils.workers import thread_count
    from hidiff.weights.find import default_model, load_model

    start_logging(is_main=True)
    device = find_device(args.device)
    jobs, notices = find_jobs(
        args.inputs,
        args.out,
        recursive=args.recursive,
        suffix=args.suffix,
        ending=None if args.format == "auto" else f".{args.format}",
    )
    prepare_folder(args.out)
    if args.compare:
        check_replaceable(args.out / PAGE)
    if args.model is None:
        args.model, advice = default_model()
        notices.append(advice)
    loaded = load_model(args.model, device=device)
    for line in (loaded.description, *loaded.notices, *notices):
        LOG.info(line)

    local = local_options(
        args.local, size=args.size, overlap=args.overlap, patch_size=loaded.patch_size
    )

    def restore(image: Tensor, name: str, progress: Callable[[float], None]) -> Tensor:
        return restore_image(
            loaded.model,
            image,
            name=name,
            self_ensemble=args.ensemble,
            seeds=args.seeds,
            local=local,
            precision=args.precision,
            progress=progress,
        )

    restore_photos(jobs, restore, overwrite=args.overwrite, workers=thread_count("auto", device))
    shown = [job for job in jobs if job.state in ("written", "skipped")]
    if args.compare and shown:
        entries = [
            Comparison(str(job.target.relative_to(args.out)), job.source, job.target)
            for job in shown
        ]
        left_out = write_page(args.out / PAGE, entries, title=loaded.description, embed=args.embed)
        for name, reason in left_out.items():
            LOG.info("not on the page: %s: %s", name, reason)
        LOG.info("to look at: %s", args.out / PAGE)
    return int(any(job.state == "failed" for job in jobs))
