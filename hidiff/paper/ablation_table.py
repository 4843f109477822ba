"""What an ablation has measured: a Markdown table, JSON, and the scores over T."""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hidiff.benchmark.macs import Complexity, model_complexity
from hidiff.options import Options
from hidiff.paper.ablation import Run, scored
from hidiff.scoring.files import read_scores
from hidiff.weights.experiment import RESULTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRIC_TITLES = {"psnr": "PSNR (dB)", "ssim": "SSIM"}
METRIC_DECIMALS = {"psnr": 3}
DECIMALS = 4

Points = list[tuple[float, float, float]]


@dataclass
class Row:
    """A method of the table: what was measured with each seed.

    `scores` is data set → metric → values in the order of `seeds`, `blurry` the same of the input
    images (equal for all seeds), `protocols` data set → protocol. `failed` counts images without a
    result.
    """

    label: str
    options: Options
    upper_bound: bool
    complexity: Complexity
    seeds: list[int] = field(default_factory=list)
    scores: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    blurry: dict[str, dict[str, float]] = field(default_factory=dict)
    protocols: dict[str, str] = field(default_factory=dict)
    failed: int = 0

    @property
    def title(self) -> str:
        """The option file, and that a score is no deblurring score where that is so."""
        bound = " (upper bound: sees the sharp image)" if self.upper_bound else ""
        return self.label + bound

    @property
    def budget(self) -> str:
        """Steps × global batch × patch of the training, phase by phase."""
        train, data = self.options.for_training()
        return ", ".join(
            f"{phase.iters} × {phase.batch_size * train.reference_world_size} × {phase.patch_size}²"
            for phase in data.phases(train.total_iter)
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "label": self.label,
            "model_type": self.options.model_type,
            "timesteps": self.complexity.timesteps,
            "parameters": self.complexity.parameters,
            "macs": self.complexity.macs,
            "budget": self.budget,
            "upper_bound": self.upper_bound,
            "protocols": self.protocols,
            "seeds": self.seeds,
            "scores": self.scores,
            "blurry": self.blurry,
            "failed": self.failed,
        }


def collect(runs: Sequence[Run]) -> list[Row]:
    """The scored runs in the current folder, the seeds of a method together.

    Scores that need the sharp image come last.
    """
    rows: dict[str, Row] = {}
    for run in filter(scored, runs):
        if run.label not in rows:
            complexity = model_complexity(run.content)
            rows[run.label] = Row(
                run.label, run.options, run.model_class.restores_from_gt, complexity
            )
        row = rows[run.label]
        row.seeds.append(run.seed)
        for data in read_scores(RESULTS / run.name):
            if data.source != "test":  # somebody has scored the pictures too
                continue
            row.protocols[data.dataset] = data.protocol
            row.failed += len(data.failed)
            row.blurry[data.dataset] = data.mean("blurry")
            for metric, value in data.mean().items():
                row.scores.setdefault(data.dataset, {}).setdefault(metric, []).append(value)
    return sorted(rows.values(), key=lambda row: row.upper_bound)


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, which is 0 for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _cell(metric: str, values: Sequence[float]) -> str:
    decimals = METRIC_DECIMALS.get(metric, DECIMALS)
    if not values:
        return ""
    mean, std = mean_and_std(values)
    spread = f" ± {std:.{decimals}f}" if len(values) > 1 else ""
    return f"{mean:.{decimals}f}{spread}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def markdown(rows: Sequence[Row], *, command: str, plot: str | None) -> str:
    """The report: a table for each data set.

    Args:
        rows: see `collect`.
        command: what was called.
        plot: the picture of the scores over T, relative to the report; None without one.
    """
    lines = [
        "# Ablation",
        "",
        f"    {command}",
        "",
        "Mean ± standard deviation over the seeds. Parameters and multiply-accumulates are those "
        "of restoring a 256×256 image, the denoiser counted T times. The budget is steps × global "
        "batch × patch of the training named; a stage 2 starts from a stage 1 that had its own.",
    ]
    for dataset in dict.fromkeys(name for row in rows for name in row.scores):
        here = [row for row in rows if dataset in row.scores]
        metrics = list(dict.fromkeys(m for row in here for m in row.scores[dataset]))
        titles = [METRIC_TITLES.get(metric, metric) for metric in metrics]
        lines += ["", f"## {dataset} (protocol {here[0].protocols[dataset]})", ""]
        lines.append(_line(["option file", "params (M)", "MACs (G)", *titles, "seeds", "budget"]))
        lines.append(_line(["---"] + ["---:"] * (len(metrics) + 3) + ["---"]))
        blurry = [_cell(m, [here[0].blurry[dataset][m]]) for m in metrics]
        lines.append(_line(["blurry input", "", "", *blurry, "", ""]))
        for row in here:
            lines.append(
                _line(
                    [
                        row.title,
                        f"{row.complexity.parameters / 1e6:.3f}",
                        f"{row.complexity.macs / 1e9:.3f}",
                        *(_cell(m, row.scores[dataset].get(m, [])) for m in metrics),
                        ", ".join(map(str, row.seeds)),
                        row.budget,
                    ]
                )
            )
    failed = [f"{row.title}: {row.failed} images have no result" for row in rows if row.failed]
    lines += ["", *failed] if failed else []
    if plot is not None:
        lines += ["", f"![PSNR over T]({plot})"]
    return "\n".join(lines) + "\n"


def _but_for_timesteps(content: Mapping[str, Any]) -> str:
    """Equal for the option files of one sweep."""
    common = {k: v for k, v in content.items() if k not in ("name", "manual_seed", "path")}
    schedule = dict(common.pop("diffusion_schedule"))
    schedule.pop("timesteps", None)
    return json.dumps([common, schedule], sort_keys=True)


def sweep(rows: Sequence[Row], metric: str = "psnr") -> dict[str, Points]:
    """The scores of methods that differ in T alone, as `plot` takes them.

    Returns:
        Data set (and method, where several are swept) → (T, mean, standard deviation); only where
        there are two values of T or more.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.options.diffusion_schedule is not None:
            groups.setdefault(_but_for_timesteps(row.options.sections), []).append(row)
    swept = [
        sorted(group, key=lambda row: row.complexity.timesteps)
        for group in groups.values()
        if len({row.complexity.timesteps for row in group}) > 1
    ]
    series = {}
    for group in swept:
        for dataset in group[0].scores:
            points = [
                (float(row.complexity.timesteps), *mean_and_std(row.scores[dataset][metric]))
                for row in group
                if row.scores.get(dataset, {}).get(metric)
            ]
            label = dataset if len(swept) == 1 else f"{dataset}, {group[0].label} ..."
            if len(points) > 1:
                series[label] = points
    return series


def plot(series: Mapping[str, Points], *, title: str) -> bytes:
    """A PNG of 720×460 pixels: PSNR over T with error bars, T on a logarithmic axis.

    Args:
        series: what `sweep` returns; a bar of 0 is not drawn.
        title: stands above.
    """
    # Imported here: it takes a second, which only this picture is worth.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), dpi=100, layout="constrained")
    draw(figure.add_subplot(), series, title=title)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def draw(axes: Axes, series: Mapping[str, Points], *, title: str) -> None:
    """Draw what `plot` shows on the axes of a matplotlib figure."""
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
