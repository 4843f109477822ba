"""What test.py does: restore and score the test sets, and write down the result."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hidiff.data import build_dataset
from hidiff.engine.distributed import Processes
from hidiff.engine.evaluator import ImageResult, build_metrics, evaluate, mean_metrics
from hidiff.engine.experiment import RESULTS, load_pretrained, set_aside
from hidiff.engine.logger import get_logger
from hidiff.engine.versions import library_versions
from hidiff.models import build_model
from hidiff.options import Options
from hidiff.registry import MODELS

PROTOCOL = "basicsr"
"""The protocol of `val.metrics`, see `hidiff.metrics`."""


def run_test(options: Options, processes: Processes) -> bool:
    """Restore and score every test set of an option file.

    Writes `results/{name}/visualization/{dataset}/{image}.png`, `results/{name}/metrics.json` and
    `results/{name}/metrics.csv`; results of an earlier run are set aside under another name.

    Returns:
        Whether every image was restored.

    Raises:
        UserError: anything in the options, the data or the weights that a person must mend.
    """
    log = get_logger()
    metrics = build_metrics(options.val.metrics)
    datasets = {section.name: build_dataset(section) for section in options.test_sets().values()}
    model_class = MODELS.get(options.model_type, "model_type")
    training_only = set(model_class.training_sections.values())
    torch.manual_seed(options.manual_seed)
    model = build_model({k: v for k, v in options.sections.items() if k not in training_only})
    notices = [*options.notices, *load_pretrained(model, options, training=False)]
    model.to(processes.device).eval()
    for notice in notices:
        log.info(notice)

    folder = RESULTS / options.name
    if processes.is_main and folder.exists():
        log.info("results of an earlier run were moved to %s", set_aside(folder))
    processes.barrier()

    suffix = f"_{options.val.suffix}" if options.val.suffix else ""
    results: dict[str, list[ImageResult]] = {}
    for name, dataset in datasets.items():
        pictures = folder / "visualization" / name
        results[name] = evaluate(
            model,
            dataset,
            metrics,
            processes,
            seed=options.manual_seed,
            label=name,
            self_ensemble=options.val.selfensemble_testing,
            score_blurry=True,
            picture_path=(lambda image, to=pictures: to / f"{image}{suffix}.png")
            if options.val.save_img
            else None,
        )
    if processes.is_main:
        report = summary(options, results, upper_bound=model.restores_from_gt)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(report, indent=2) + "\n")
        write_csv(folder / "metrics.csv", results)
        for line in table(report):
            log.info(line)
        log.info("written to %s", folder)
    return not any(result.error for rows in results.values() for result in rows)


def _finite(values: Mapping[str, float]) -> dict[str, float | str]:
    """JSON knows no infinity (the PSNR of identical images); it is written as text."""
    return {name: value if math.isfinite(value) else str(value) for name, value in values.items()}


def summary(
    options: Options, results: Mapping[str, list[ImageResult]], *, upper_bound: bool
) -> dict[str, Any]:
    """The content of metrics.json."""
    return {
        "name": options.name,
        "model_type": options.model_type,
        "protocol": PROTOCOL,
        "upper_bound": upper_bound,
        "metrics": {key: dict(section) for key, section in options.val.metrics.items()},
        "manual_seed": options.manual_seed,
        "selfensemble_testing": options.val.selfensemble_testing,
        "datasets": {
            name: {
                "images": len(rows),
                "scored": sum(bool(row.restored) for row in rows),
                "failed": {row.name: row.error for row in rows if row.error},
                "blurry": _finite(mean_metrics(rows, "blurry")),
                "restored": _finite(mean_metrics(rows)),
                "seconds_per_image": math.fsum(times) / len(times) if times else None,
            }
            for name, rows in results.items()
            for times in [[row.seconds for row in rows if not row.error]]
        },
        "versions": library_versions(),
    }


def write_csv(path: Path, results: Mapping[str, list[ImageResult]]) -> None:
    """One row per image: data set, name, metrics of restored and blurry image, time, error."""
    names = sorted({n for rows in results.values() for row in rows for n in row.restored})
    header = ["dataset", "image", *names, *(f"blurry_{n}" for n in names), "seconds", "error"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for dataset, rows in results.items():
            for row in rows:
                scores = [
                    scored.get(name, "") for scored in (row.restored, row.blurry) for name in names
                ]
                seconds = "" if math.isnan(row.seconds) else f"{row.seconds:.4f}"
                writer.writerow([dataset, row.name, *scores, seconds, row.error or ""])


def table(report: Mapping[str, Any]) -> list[str]:
    """The summary as lines of text, failures below."""
    names = sorted({n for data in report["datasets"].values() for n in data["restored"]})
    header = ["data set", "images", "failed"]
    header += [f"{which} {name}" for name in names for which in ("blurry", "restored")]
    rows = [header]
    for name, data in report["datasets"].items():
        cells = [name, str(data["images"]), str(len(data["failed"]))]
        for metric in names:
            for which in ("blurry", "restored"):
                value = data[which].get(metric)
                cells.append("-" if value is None else f"{float(value):.4f}")
        rows.append(cells)
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines.insert(0, f"protocol: {report['protocol']}")
    if report["upper_bound"]:
        lines.insert(1, "stage 1 sees the sharp image: an upper bound, no deblurring score")
    for name, data in report["datasets"].items():
        if not data["scored"]:
            lines.append(f"{name}: no ground truth, nothing was scored")
        lines += [f"{name}/{image}: {error}" for image, error in data["failed"].items()]
    return [line.rstrip() for line in lines]
