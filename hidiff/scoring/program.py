"""What the programs that score result folders share: arguments, default folders, output."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hidiff.data.image import listing
from hidiff.errors import UserError
from hidiff.metrics.published import hi_diff_scores
from hidiff.parallel import available_cores
from hidiff.scoring.files import check_replaceable, score_paths, write_scores
from hidiff.scoring.folders import FolderScores, score_folders

DATA_FOLDERS = {
    "GoPro": (Path("datasets/GoPro/test"), Path("datasets/test/GoPro")),
    "HIDE": (Path("datasets/test/HIDE"),),
    "RealBlur_R": (Path("datasets/test/RealBlur_R"), Path("datasets/RealBlur/test/RealBlur_R")),
    "RealBlur_J": (Path("datasets/test/RealBlur_J"), Path("datasets/RealBlur/test/RealBlur_J")),
}
"""Where the layout keeps a benchmark's `input` and `target`; the first one that exists counts."""

EPILOG = (
    "Pairs are matched by name. Written are score_DATASET_PROTOCOL.json (means, counts, failures, "
    "missing images, library versions) and .csv (one row per image); files of earlier scores are "
    "replaced, since scoring again gives them back, and no others. Exit code: 0 all images scored, "
    "1 images failed or are missing on either side, 2 a mistake in the call. Relative paths count "
    "from the current folder."
)


def score_parser(description: str) -> argparse.ArgumentParser:
    """A parser with --dir, --output, --suffix and --jobs."""
    parser = argparse.ArgumentParser(description=description, epilog=EPILOG)
    parser.add_argument(
        "--dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="result folder of test.py; the restored images are in DIR/visualization/DATASET",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where the scores go (default: the result folder)",
    )
    parser.add_argument(
        "--suffix",
        default="",
        metavar="TEXT",
        help="end of the restored images' names, where test.py was told a val.suffix (_TEXT)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=available_cores(),
        metavar="N",
        help="worker processes, one core each (default: all cores)",
    )
    return parser


def named_folders(texts: Iterable[str], names: Iterable[str], option: str) -> dict[str, Path]:
    """NAME=DIR arguments as folders by data set.

    Args:
        names: the data sets that may be named.
        option: the option that takes the arguments, for messages.

    Raises:
        UserError: an argument is not of this form, or its name is none of `names`.
    """
    names = list(names)
    folders = {}
    for text in texts:
        name, _, folder = text.partition("=")
        if name not in names or not folder:
            raise UserError(
                f"{option} {text}: expected NAME=DIR, where NAME is {' or '.join(names)}"
            )
        folders[name] = Path(folder)
    return folders


def find_data(dataset: str) -> Path | None:
    """The folder of a data set that the layout has here, or None."""
    return next((path for path in DATA_FOLDERS.get(dataset, ()) if path.is_dir()), None)


def restored_folder(result: Path, dataset: str) -> Path:
    """Where test.py puts the restored images of a data set."""
    return result / "visualization" / dataset


@dataclass(frozen=True)
class ScoreJob:
    """One data set to score, its folders known to exist and its output to be replaceable."""

    dataset: str
    protocol: str
    restored: Path
    target: Path
    json_path: Path
    csv_path: Path


def plan_job(
    arguments: argparse.Namespace, dataset: str, protocol: str, target: Path | None, option: str
) -> ScoreJob:
    """Find the folders of a data set before any work starts.

    Args:
        arguments: of `score_parser`.
        target: the folder of sharp images; None takes the layout's.
        option: what names that folder on the command line, for messages.

    Raises:
        UserError: a folder is missing, an output file must not be replaced, or --jobs is below 1.
    """
    if arguments.jobs < 1:
        raise UserError(f"--jobs: must be at least 1, not {arguments.jobs}")
    restored = restored_folder(arguments.dir, dataset)
    if not restored.is_dir() or not any(restored.iterdir()):
        state = "is empty" if restored.is_dir() else "does not exist"
        raise UserError(
            f"--dir: {restored} {state}; restore the images of {dataset} first, with test.py and "
            "val.save_img: true"
        )
    if target is None:
        data = find_data(dataset)
        if data is None:
            places = " or ".join(str(path / "target") for path in DATA_FOLDERS[dataset])
            raise UserError(
                f"the sharp images of {dataset} are not in {places}; run this from the folder that "
                f"holds datasets/, or name them with {option}"
            )
        target = data / "target"
    elif not target.is_dir():
        raise UserError(f"{option}: {target} is no folder")
    paths = score_paths(arguments.output or arguments.dir, dataset, protocol)
    check_replaceable(*paths)
    return ScoreJob(dataset, protocol, restored, target, *paths)


def run_jobs(arguments: argparse.Namespace, jobs: list[ScoreJob]) -> int:
    """Score the data sets, print and write the scores; returns the program's exit code.

    Raises:
        UserError: see `score_folders` and `write_scores`.
    """
    complete = True
    for job in jobs:
        scores = score_folders(
            job.restored,
            job.target,
            protocol=job.protocol,
            dataset=job.dataset,
            suffix=arguments.suffix,
            jobs=arguments.jobs,
        )
        print("\n".join(describe(scores)))
        write_scores(scores, job.json_path, job.csv_path)
        print(f"written to {job.json_path} and {job.csv_path.name}")
        complete = complete and scores.all_scored
    return 0 if complete else 1


def describe(scores: FolderScores) -> list[str]:
    """The result in lines of text: the score with its protocol, and what is wrong with it."""
    count = len(scores.scored)
    images = f"{count} image" + "s" * (count != 1)
    if note := scores.count_note():
        images += f"; {note}"
    mean = scores.mean()
    result = (
        f"PSNR {mean['psnr']:.4f} dB, SSIM {mean['ssim']:.4f}"
        if mean
        else "nothing could be scored"
    )
    lines = [f"{scores.dataset}: {result} (protocol {scores.protocol}, {images})"]
    lines += [
        f"  paper, Table {table}: PSNR {published.psnr:.2f} dB, SSIM {published.ssim:.3f} "
        f"(protocol {scores.benchmark.protocol})"
        for table, published in hi_diff_scores(scores.dataset).items()
    ]
    lines += [f"  warning: {warning}" for warning in scores.warnings()]
    lines += [f"  failed: {name}: {error}" for name, error in scores.failed.items()]
    for missing, side in ((scores.missing_restored, "restored"), (scores.missing_target, "sharp")):
        if missing:
            lines.append(f"  without a {side} image: {len(missing)} ({listing(missing, 20)})")
    return lines
