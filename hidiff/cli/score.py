"""Score folders of restored pictures, whoever made them.

hidiff score --dir results/test_HI_Diff_GoPro              every benchmark it has, as published
hidiff score --restored DIR --target DIR --output DIR      any two folders
hidiff score --restored DIR --data PAIRS --output DIR      the blurry images, too
hidiff score --restored DIR --output DIR --metrics niqe    without sharp images
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hidiff.cli.arguments import PROTOCOLS, add_data, add_jobs, add_output
from hidiff.utils.errors import UserError

EPILOG = (
    "Pairs are matched by name. The scores are written to scores.json; earlier ones of the same "
    "data set and protocol in it are replaced, all others are kept. Exit code: 0 all images "
    "scored, 1 images failed or are missing on either side, 2 a mistake in the call."
)


def find_restored(args: argparse.Namespace, datasets: Sequence[str]) -> dict[str, Path]:
    """The folders of restored pictures, by data set.

    Args:
        args: of the command line.
        datasets: looked for in the result folder where the command names none.

    Raises:
        UserError: a folder is missing or empty.
    """
    from hidiff.evaluation.folders import restored_folder

    if args.restored is not None:
        found = {(args.dataset or [args.restored.resolve().name])[0]: args.restored}
    else:
        found = {name: restored_folder(args.dir, name) for name in args.dataset or datasets}
        if not args.dataset:
            found = {name: path for name, path in found.items() if path.is_dir()}
    empty = [path for path in found.values() if not path.is_dir() or not any(path.iterdir())]
    if empty or not found:
        where = ", ".join(map(str, empty)) or f"{args.dir / 'visualization'} of a benchmark"
        raise UserError(
            f"--dir, --restored: there are no pictures in {where}; restore the images first, with "
            "hidiff test and val.save_img: true"
        )
    return found


def find_targets(
    texts: Sequence[str], names: Sequence[str], *, needed: bool = True
) -> dict[str, Path | None]:
    """The folders of sharp pictures, by data set: those of --target, else the layout's.

    Without `needed` a data set may have None.

    Raises:
        UserError: a folder is missing.
    """
    from hidiff.evaluation.folders import DATA_FOLDERS, find_data

    if len(texts) == len(names) == 1 and ("=" not in texts[0] or Path(texts[0]).is_dir()):
        texts = [f"{names[0]}={texts[0]}"]
    layout = {name: find_data(name) for name in names}
    targets = {name: data and data / "target" for name, data in layout.items()}
    for text in texts:
        name, _, folder = text.partition("=")
        if name not in names or not folder:
            known = " or ".join(names)
            raise UserError(f"--target {text}: expected NAME=DIR, where NAME is {known}")
        targets[name] = Path(folder)
    for name, target in targets.items():
        if target is not None and not target.is_dir():
            raise UserError(f"--target {name}: {target} is no folder")
        if target is None and needed:
            places = " or ".join(f"{path}/target" for path in DATA_FOLDERS.get(name, ()))
            raise UserError(
                f"the sharp images of {name} are not in {places or 'any known place'}; run this "
                f"from the folder that holds datasets/, or name them with --target {name}=DIR"
            )
    return targets


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    pictures = parser.add_mutually_exclusive_group(required=True)
    text = "result folder of a test; the restored images are in DIR/visualization/DATASET"
    pictures.add_argument("--dir", type=Path, metavar="DIR", help=text)
    text = "folder of restored images; needs --output"
    pictures.add_argument("--restored", type=Path, metavar="DIR", help=text)
    add = parser.add_argument
    text = "what to score (default: what the result folder has of the benchmarks)"
    add("--dataset", nargs="+", metavar="NAME", help=text)
    text = "folders of the sharp images (default: where the layout under datasets/ has them)"
    add("--target", nargs="+", default=[], metavar="[NAME=]DIR", help=text)
    add_data(parser, required=False)
    text = "default: that of the published scores, for other data sets basicsr"
    add("--protocol", choices=PROTOCOLS, help=text)
    text = "of the package pyiqa, beside PSNR and SSIM: lpips,niqe,musiq"
    add("--metrics", default="", metavar="NAME,…", help=text)
    add_output(parser, "where the scores go (default: --dir)")
    text = "end of the restored images' names, where a test was told a val.suffix (_TEXT)"
    add("--suffix", default="", metavar="TEXT", help=text)
    add_jobs(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from hidiff.evaluation.folders import score_folders
    from hidiff.evaluation.record import SCORES_FILE as JSON
    from hidiff.evaluation.record import read_scores, write_scores
    from hidiff.evaluation.summary import score_lines
    from hidiff.metrics.published import BENCHMARKS, published_protocol
    from hidiff.utils.workers import available_cores

    output = args.output or args.dir
    if output is None or (args.restored is not None and len(args.dataset or ["one"]) > 1):
        raise UserError("--restored takes --output, and at most one --dataset")
    # Everything is checked before the first image is read.
    restored = find_restored(args, list(BENCHMARKS))
    if args.data is not None and (len(restored) > 1 or args.target):
        raise UserError("--data takes the place of --target, for one --dataset")
    metrics = [name.strip() for name in args.metrics.split(",") if name.strip()]
    if args.data is None:
        targets = find_targets(args.target, list(restored), needed=not metrics)
    else:
        targets = dict.fromkeys(restored, args.data)
    if (output / JSON).exists():
        read_scores(output)  # A file of another program is not replaced.
    scores, local = [], {}
    if args.dir is not None and (args.dir / JSON).is_file():
        local = {data.dataset: data.local for data in read_scores(args.dir)}
    for name, folder in restored.items():
        scored = score_folders(
            folder,
            targets[name],
            protocol=args.protocol or published_protocol(name),
            dataset=name,
            pairs=args.data is not None,
            metrics=metrics,
            suffix=args.suffix,
            jobs=args.jobs or available_cores(),
        )
        scores.append(scored.model_copy(update={"local": local.get(name)}))
        write_scores(output, scores)
    print("\n".join(score_lines(scores)))
    print(f"written to {output / JSON}")
    return int(any(data.failed for data in scores))
