"""What an ablation has measured: a Markdown table, JSON, and the scores over T."""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hidiff.evaluation.record import read_scores
from hidiff.options import Options
from hidiff.report.ablation import Run
from hidiff.report.macs import model_complexity
from hidiff.utils.files import write_bytes, write_text
from hidiff.utils.tables import markdown_table
from hidiff.weights.experiment import RESULTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRIC_TITLES = {"psnr": "PSNR (dB)", "ssim": "SSIM"}
METRIC_DECIMALS = {"psnr": 3}
DECIMALS = 4
PLOT = "psnr_over_T.png"

Points = list[tuple[float, float, float]]


def _budget(options: Options) -> str:
    """Steps × global batch × patch of the training, phase by phase."""
    train, data = options.for_training()
    world_size = train.reference_world_size or 1
    return ", ".join(
        f"{phase.iters} × {phase.batch_size * world_size} × {phase.patch_size}²"
        for phase in data.phases(train.total_iter)
    )


def _training_set(options: Options) -> str:
    """The name of the training set, or those that are mixed with their weights."""
    _, data = options.for_training()
    used = [section for section in data.mixture if section.weight]
    if len(used) < 2:
        return (used or [data])[0].name
    return ", ".join(f"{section.weight:g} × {section.name}" for section in used)


def collect(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The scored runs in the current folder, the seeds of a method together: ablation.json.

    `scores` is data set → metric → values in the order of `seeds`, `blurry` the same of the input
    images (equal for all seeds), `protocols` data set → protocol. `failed` counts images without a
    result. Methods that need the sharp image come last.
    """
    rows: dict[str, dict[str, Any]] = {}
    for run in runs:
        if not run.scored:
            continue
        if run.label not in rows:
            complexity = model_complexity(run.content)
            rows[run.label] = {
                "label": run.label,
                "model_type": run.options.model_type,
                "timesteps": complexity.timesteps,
                "parameters": complexity.parameters,
                "macs": complexity.macs,
                "training_set": _training_set(run.options),
                "budget": _budget(run.options),
                "upper_bound": run.model.restores_from_gt,
                "protocols": {},
                "seeds": [],
                "scores": {},
                "blurry": {},
                "failed": 0,
            }
        row = rows[run.label]
        row["seeds"].append(run.seed)
        for data in read_scores(RESULTS / run.name):
            if data.source != "test":  # somebody has scored the pictures too
                continue
            row["protocols"][data.dataset] = data.protocol
            row["failed"] += len(data.failed)
            row["blurry"][data.dataset] = data.mean("blurry")
            scores = row["scores"].setdefault(data.dataset, {})
            for metric, value in data.mean().items():
                scores.setdefault(metric, []).append(value)
    return sorted(rows.values(), key=lambda row: row["upper_bound"])


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, which is 0 for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _cell(metric: str, values: Sequence[float]) -> str:
    if not values:
        return ""
    decimals = METRIC_DECIMALS.get(metric, DECIMALS)
    mean, std = mean_and_std(values)
    return f"{mean:.{decimals}f}" + (f" ± {std:.{decimals}f}" if len(values) > 1 else "")


def _caption(rows: Sequence[Mapping[str, Any]]) -> str:
    protocols = {name: protocol for row in rows for name, protocol in row["protocols"].items()}
    timesteps = ", the denoiser counted T times" * any(row["timesteps"] > 1 for row in rows)
    return (
        "Mean ± standard deviation over the seeds. "
        f"Protocols: {', '.join(f'{name} {protocol}' for name, protocol in protocols.items())}. "
        "Parameters and multiply-accumulates are those of restoring a 256×256 image"
        f"{timesteps}. The budget is steps × global batch × patch of the training named; a stage 2 "
        "starts from a stage 1 that had its own."
    )


def markdown(rows: Sequence[Mapping[str, Any]], *, command: str, picture: bool) -> str:
    """The report: one table, with the metrics of each test set side by side.

    Args:
        rows: see `collect`.
        command: what was called.
        picture: whether there is a picture of the scores over T.
    """
    titles = {
        row["label"]: row["label"] + " (upper bound: sees the sharp image)" * row["upper_bound"]
        for row in rows
    }
    columns = list(
        dict.fromkeys((d, m) for row in rows for d in row["scores"] for m in row["scores"][d])
    )
    names = [f"{dataset}: {METRIC_TITLES.get(metric, metric)}" for dataset, metric in columns]
    # The same in all rows that have the set.
    blurry = {
        (dataset, metric): [value]
        for row in rows
        for dataset, means in row["blurry"].items()
        for metric, value in means.items()
    }
    # Where all have been trained on the same, that is no news.
    sets = len({row["training_set"] for row in rows}) > 1
    lines = ["# Ablation", "", f"    {command}", "", _caption(rows), ""]
    lines += markdown_table(
        [
            "option file",
            *["trained on"] * sets,
            "params (M)",
            "MACs (G)",
            *names,
            "seeds",
            "budget",
        ],
        [
            [
                "blurry input",
                *[""] * (sets + 2),
                *(_cell(column[1], blurry.get(column, [])) for column in columns),
                "",
                "",
            ],
            *(
                [
                    titles[row["label"]],
                    *[row["training_set"]] * sets,
                    f"{row['parameters'] / 1e6:.3f}",
                    f"{row['macs'] / 1e9:.3f}",
                    *(_cell(m, row["scores"].get(d, {}).get(m, [])) for d, m in columns),
                    ", ".join(map(str, row["seeds"])),
                    row["budget"],
                ]
                for row in rows
            ),
        ],
        numbers=range(1 + sets, sets + len(columns) + 3),
    )
    failed = [
        f"{titles[row['label']]}: {row['failed']} images have no result"
        for row in rows
        if row["failed"]
    ]
    lines += ["", *failed] if failed else []
    lines += ["", f"![PSNR over T]({PLOT})"] if picture else []
    return "\n".join(lines) + "\n"


def sweep(runs: Sequence[Run], rows: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """The PSNR of methods that differ in T alone, as `draw` takes them.

    Args:
        runs: the runs that the rows are of.
        rows: see `collect`.

    Returns:
        Data set (and method, where several are swept) → (T, mean, standard deviation); only where
        there are two values of T or more.
    """
    groups: dict[str, list[str]] = {}
    for run in runs:
        if run.options.diffusion_schedule is not None:
            own = ("name", "manual_seed", "path")
            common = {k: v for k, v in run.content.items() if k not in own}
            common["diffusion_schedule"] = {**common["diffusion_schedule"], "timesteps": None}
            groups.setdefault(json.dumps(common, sort_keys=True), []).append(run.label)
    swept = [
        sorted((row for row in rows if row["label"] in labels), key=lambda row: row["timesteps"])
        for labels in groups.values()
    ]
    swept = [group for group in swept if len({row["timesteps"] for row in group}) > 1]
    series = {}
    for group in swept:
        for dataset in group[0]["scores"]:
            points = [
                (float(row["timesteps"]), *mean_and_std(row["scores"][dataset]["psnr"]))
                for row in group
                if row["scores"].get(dataset, {}).get("psnr")
            ]
            if len(points) > 1:
                more = f", {group[0]['label']} ..." if len(swept) > 1 else ""
                series[dataset + more] = points
    return series


def draw(axes: Axes, series: Mapping[str, Points], *, title: str) -> None:
    """Draw PSNR over T with error bars on the axes of a matplotlib figure, T logarithmic.

    Args:
        axes: of the figure.
        series: what `sweep` returns; a bar of 0 is not drawn.
        title: stands above.
    """
    for label, points in series.items():
        steps, means, bars = zip(*points, strict=True)
        axes.errorbar(steps, means, bars if any(bars) else None, marker="o", capsize=3, label=label)
    ticks = sorted({step for points in series.values() for step, _, _ in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set(title=title, xlabel="T, number of diffusion steps", ylabel="PSNR (dB)")
    axes.grid(axis="y", alpha=0.4)
    if len(series) > 1:
        axes.legend()


def write_report(runs: Sequence[Run], command: str) -> None:
    """Write table, JSON and plot of what has been scored so far into the current folder."""
    rows = collect(runs)
    series = sweep(runs, rows)
    if series:
        # Imported here: it takes a second, which only this picture is worth.
        from matplotlib.figure import Figure

        seeds = len({run.seed for run in runs})
        title = f"PSNR over T (mean and std of {seeds} seeds)" if seeds > 1 else "PSNR over T"
        figure = Figure(figsize=(7.2, 4.6), dpi=100, layout="constrained")
        draw(figure.add_subplot(), series, title=title)
        content = io.BytesIO()
        figure.savefig(content, format="png")
        write_bytes(PLOT, content.getvalue())
    write_text("ablation.md", markdown(rows, command=command, picture=bool(series)))
    write_text("ablation.json", json.dumps(rows, indent=2) + "\n")
