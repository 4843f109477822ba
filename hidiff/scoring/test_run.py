"""What test.py does: restore and score the test sets, and write down the result."""

from __future__ import annotations

import csv
import functools
import io
import json
import logging
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hidiff.data import build_dataset
from hidiff.errors import UserError
from hidiff.files import inside, set_aside, write_text
from hidiff.lock import hold
from hidiff.models import DeblurModel, build_model
from hidiff.models.compilation import compile_blocks
from hidiff.models.precision import precision
from hidiff.options import DatasetOptions, Options
from hidiff.parallel import Group
from hidiff.registry import MODELS
from hidiff.scoring.evaluator import (
    ImageResult,
    build_test_scorer,
    cropped_note,
    evaluate,
    mean_metrics,
)
from hidiff.scoring.folders import FolderScores, ImageScore
from hidiff.scoring.log import (
    ROWS,
    Key,
    ScoreLog,
    can_resume,
    done_before,
    fingerprint,
    open_log,
    read_rows,
    start,
)
from hidiff.scoring.versions import library_versions
from hidiff.weights.experiment import RESULTS
from hidiff.weights.pretrained import load_pretrained

LOG = logging.getLogger("hidiff")


@dataclass(frozen=True)
class TestedSet:
    """One test set's results: `runs` has, for each seed, those of all images in order."""

    options: DatasetOptions
    protocol: str
    pictures: Path
    runs: list[list[ImageResult]]

    @property
    def rows(self) -> list[ImageResult]:
        """The results of the first seed, whose pictures are written and whose input is scored."""
        return self.runs[0]

    def seed_means(self) -> dict[str, list[float]]:
        """The data set's mean of every metric, one value a seed."""
        means = [mean_metrics(run) for run in self.runs]
        return {name: [mean[name] for mean in means] for name in means[0] if name != "aligned"}

    def seed_deviation(self) -> dict[str, dict[str, float]]:
        """How much the scores depend on the noise, for two seeds or more.

        `of_mean` is the standard deviation of the data set's mean over the seeds, `of_image` the
        mean over the images of each one's standard deviation over the seeds.
        """
        of_image = {}
        for name in self.seed_means():
            rows = zip(*self.runs, strict=True)
            scores = [
                [r.restored[name] for r in row] for row in rows if all(r.restored for r in row)
            ]
            of_image[name] = math.fsum(map(statistics.stdev, scores)) / len(scores)
        of_mean = {name: statistics.stdev(values) for name, values in self.seed_means().items()}
        return {"of_mean": of_mean, "of_image": of_image}

    def remarks(self) -> list[str]:
        """What to know about the score: a count or value that cannot be the benchmark's."""
        target = self.options.source.get("dataroot_gt")
        if target is None:
            return ["no ground truth, nothing was scored"]
        cropped = cropped_note(self.rows)
        found = [cropped] if cropped else []
        images = [
            ImageScore(
                row.name,
                row.restored.get("psnr"),
                row.restored.get("ssim"),
                bool(row.restored["aligned"]) if "aligned" in row.restored else None,
                row.error,
            )
            for row in self.rows
            if row.error is not None or {"psnr", "ssim"} <= set(row.restored)
        ]
        name = self.options.name
        scores = FolderScores(self.protocol, name, self.pictures, Path(target), tuple(images))
        if not scores.scored:
            return found
        note = scores.count_note()
        return [*found, *([note] if note else []), *scores.warnings()]


def run_test(
    options: Options, processes: Group, *, seeds: int = 1, resume: bool = False
) -> bool:
    """Restore and score every test set of an option file.

    Writes `results/{name}/visualization/{dataset}/{image}.png` and a row in `rows/` as each image
    is done, and `metrics.json` and `metrics.csv` in the end. Results of an earlier run are set
    aside under another name.

    Args:
        options: the option file.
        processes: those that share the images.
        seeds: how often each image is restored, each time from other noise, to measure how much
            the scores depend on it; the seeds count up from `manual_seed`.
        resume: keep the results of an earlier run of the same test, and go on with the images that
            have no row or no picture there.

    Returns:
        Whether every image was restored, and the result was written.

    Raises:
        UserError: anything in the options, the data or the weights that a person must mend.
    """
    log = LOG
    folder = RESULTS / options.name
    suffix = f"_{options.val.suffix}" if options.val.suffix else ""
    sections = options.test_sets().values()
    scorers = {section.name: build_test_scorer(options.val, section.name) for section in sections}
    datasets = {section.name: build_dataset(section) for section in sections}
    pictures = {name: folder / "visualization" / name for name in datasets}

    def picture(dataset: str, image: str) -> Path:
        return inside(pictures[dataset], f"{image}{suffix}.png")

    for name, dataset in datasets.items():
        for pair in dataset.pairs:
            picture(name, pair.name)  # refuses a name that leads elsewhere before work starts
    model_class = MODELS.get(options.model_type, "model_type")
    training_only = set(model_class.training_sections.values())
    torch.manual_seed(options.manual_seed)
    model = build_model({k: v for k, v in options.sections.items() if k not in training_only})
    loaded, _ = load_pretrained(model, options, training=False)
    notices = [*options.notices, *model.notices, *loaded, *hold(folder, processes)]
    with processes.main_first():
        rows = _prepare(folder, options, model, processes, seeds, resume)
    rows = processes.gather(rows)[0]
    model.to(processes.device).eval()
    model.net_g.use_kernels(options.kernels)
    if options.val.compile:
        compile_blocks(model, "val.compile")
    for dataset in datasets.values():
        notices += dataset.notices
    for notice in notices:
        log.info(notice)

    def test(name: str, run: int, score_log: ScoreLog) -> list[ImageResult]:
        seed, dataset = options.manual_seed + run, datasets[name]
        saves = options.val.save_img is not False and run == 0
        done = {
            index: row
            for index, row in done_before(rows, name, seed, dataset).items()
            if not saves or picture(name, row.name).is_file()
        }
        label = name if seeds == 1 else f"{name}, seed {seed}"
        if done:
            log.info("%s: %d of %d images are there already", label, len(done), len(dataset))
        return evaluate(
            model,
            dataset,
            scorers[name][1],
            processes,
            seed=seed,
            label=label,
            self_ensemble=options.val.selfensemble_testing,
            num_workers=options.val.num_workers,
            pbar=options.val.pbar,
            score_blurry=run == 0,
            picture_path=functools.partial(picture, name) if saves else None,
            on_result=lambda row: score_log.add(name, seed, dataset.files(row.index), row),
            done=processes.gather(done)[0],
        )

    with open_log(folder, processes.rank) as score_log, precision(model, options.val.precision):
        tested = [
            TestedSet(
                section,
                scorers[section.name][0],
                pictures[section.name],
                [test(section.name, run, score_log) for run in range(seeds)],
            )
            for section in sections
        ]
    complete = not any(row.error for data in tested for run in data.runs for row in run)
    if processes.is_main:
        report = summary(options, tested, upper_bound=model.restores_from_gt)
        for line in table(report):
            log.info(line)
        try:
            write_csv(folder / "metrics.csv", tested, options.manual_seed)
            write_text(folder / "metrics.json", json.dumps(report, indent=2) + "\n")
        except UserError as error:
            log.error(
                "%s; nothing is lost: the rows are in %s, and test.py --resume makes of them what "
                "is missing",
                *(error, folder / ROWS),
            )
            return False
        log.info("written to %s", folder)
    return complete


def _prepare(
    folder: Path,
    options: Options,
    model: DeblurModel,
    processes: Group,
    seeds: int,
    resume: bool,
) -> dict[Key, ImageResult]:
    """Make the result folder ready on the main process; the rows to go on from."""
    if not processes.is_main:
        return {}
    expected = fingerprint(options, model, device=processes.device.type, seeds=seeds)
    if resume and can_resume(folder, expected):
        return read_rows(folder)
    if folder.exists():
        LOG.info("results of an earlier run were moved to %s", set_aside(folder))
    start(folder, expected)
    return {}


def _finite(values: Mapping[str, float]) -> dict[str, float | str]:
    """JSON knows no infinity (the PSNR of identical images); it is written as text."""
    return {
        name: value if math.isfinite(value) else str(value)
        for name, value in values.items()
        if name != "aligned"
    }


def _summary_of_set(tested: TestedSet, first_seed: int) -> dict[str, Any]:
    rows = tested.rows
    times = [row.seconds for row in rows if not row.error]
    means = tested.seed_means()
    report = {
        "protocol": tested.protocol,
        "images": len(rows),
        "scored": sum(bool(row.restored) for row in rows),
        "failed": {row.name: row.error for row in rows if row.error},
        "blurry": _finite(mean_metrics(rows, "blurry")),
        "restored": _finite({name: math.fsum(v) / len(v) for name, v in means.items()}),
        "unaligned": [row.name for row in rows if row.restored.get("aligned") is False],
        "remarks": tested.remarks(),
        "seconds_per_image": math.fsum(times) / len(times) if times else None,
    }
    if len(tested.runs) > 1 and means:
        report["seeds"] = {
            "seeds": [first_seed + run for run in range(len(tested.runs))],
            "means": means,
            "standard_deviation": tested.seed_deviation(),
        }
    return report


def summary(options: Options, tested: list[TestedSet], *, upper_bound: bool) -> dict[str, Any]:
    """The content of metrics.json."""
    return {
        "name": options.name,
        "model_type": options.model_type,
        "upper_bound": upper_bound,
        "metrics": {key: dict(section) for key, section in options.val.metrics.items()},
        "manual_seed": options.manual_seed,
        "precision": options.val.precision,
        "overrides": list(options.overrides),
        "selfensemble_testing": options.val.selfensemble_testing,
        "datasets": {
            data.options.name: _summary_of_set(data, options.manual_seed) for data in tested
        },
        "versions": library_versions(),
    }


def write_csv(path: Path, tested: list[TestedSet], first_seed: int) -> None:
    """One row per image and seed: metrics of restored and blurry image, time, error."""
    rows = [
        (data, first_seed + number, row)
        for data in tested
        for number, run in enumerate(data.runs)
        for row in run
    ]
    names = sorted({name for _, _, row in rows for name in row.restored})
    header = ["dataset", "protocol", "image", "seed", *names]
    header += [*(f"blurry_{name}" for name in names), "seconds", "error"]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    for data, seed, row in rows:
        scores = [part.get(name, "") for part in (row.restored, row.blurry) for name in names]
        seconds = "" if math.isnan(row.seconds) else f"{row.seconds:.4f}"
        place = [data.options.name, data.protocol, row.name, seed]
        writer.writerow([*place, *scores, seconds, row.error or ""])
    write_text(path, text.getvalue())


def table(report: Mapping[str, Any]) -> list[str]:
    """The summary as lines of text, remarks and failures below."""
    datasets = report["datasets"]
    names = sorted({name for data in datasets.values() for name in data["restored"]})
    header = ["data set", "protocol", "images", "failed"]
    header += [f"{which} {name}" for name in names for which in ("blurry", "restored")]
    rows = [header]
    for title, data in datasets.items():
        cells = [title, data["protocol"], str(data["images"]), str(len(data["failed"]))]
        for name in names:
            for which in ("blurry", "restored"):
                value = data[which].get(name)
                cells.append("-" if value is None else f"{float(value):.4f}")
        rows.append(cells)
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    if report["upper_bound"]:
        lines.insert(0, "stage 1 sees the sharp image: an upper bound, no deblurring score")
    for title, data in datasets.items():
        if "seeds" in data:
            deviation = data["seeds"]["standard_deviation"]
            lines += [
                f"{title}: {name} over {len(data['seeds']['seeds'])} seeds "
                f"{float(data['restored'][name]):.4f} ± {deviation['of_mean'][name]:.4f} (mean of "
                f"the set), ± {deviation['of_image'][name]:.4f} (one image)"
                for name in data["restored"]
            ]
        lines += [f"{title}: {remark}" for remark in data["remarks"]]
        lines += [f"{title}/{image}: {error}" for image, error in data["failed"].items()]
    return [line.rstrip() for line in lines]
