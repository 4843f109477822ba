"""The comparison as Markdown and as CSV."""

from __future__ import annotations

import csv
import io

from hidiff.evaluation.record import library_versions
from hidiff.evaluation.summary import remarks
from hidiff.report.complexity import PAPER_SIZE
from hidiff.report.intervals import LEVEL, Difference
from hidiff.report.run import METRICS, Comparison, failures
from hidiff.utils.tables import markdown_table

UNITS = {"psnr": "PSNR (dB)", "ssim": "SSIM"}
DIGITS = {"psnr": 3, "ssim": 4}

Table = tuple[list[str], list[list[str]]]
"""Header and rows; all columns but the first hold numbers."""


def in_words(difference: Difference, metric: str) -> str:
    """The mean, and the interval behind it where there is one."""
    digits = DIGITS[metric]
    if difference.low is None:
        return f"{difference.mean:+.{digits}f}"
    low, high = (f"{value:+.{digits}f}" for value in (difference.low, difference.high))
    return f"{difference.mean:+.{digits}f} [{low}, {high}]"


def models_table(comparison: Comparison) -> Table:
    """A row a model: what it scores on the compared images, and what it costs."""
    size = comparison.timed
    at = f", {size[1]}×{size[0]}" if size else ""
    counted = "×".join(map(str, PAPER_SIZE[:0:-1]))
    header = ["model", *UNITS.values(), f"seconds{at}", f"memory (MB){at}"]
    header += ["parameters (M)", f"MACs (G), {counted}"]
    rows = []
    for label, outcome in comparison.outcomes.items():
        row = [label]
        row += [f"{comparison.values(label, m).mean():.{DIGITS[m]}f}" for m in METRICS]
        timing, cost = outcome.timing, outcome.complexity
        row.append(f"{timing.median:.3g}" if timing else "")
        peak = timing.peak_bytes if timing else None
        row.append("" if peak is None else f"{peak / 1e6:.0f}")
        row += [f"{cost.parameters / 1e6:.2f}", f"{cost.macs / 1e9:.2f}"] if cost else ["", ""]
        rows.append(row)
    return header, rows


def differences_table(comparison: Comparison) -> Table:
    """A row for each model but the baseline: how it differs from that."""
    header = ["model", *(f"{UNITS[m]} [{LEVEL:.0%} interval]" for m in METRICS), "higher PSNR"]
    rows = []
    for label in comparison.outcomes:
        if label != comparison.baseline:
            found = [comparison.difference(label, comparison.baseline, m) for m in METRICS]
            cells = [in_words(part, m) for part, m in zip(found, METRICS, strict=True)]
            rows.append([label, *cells, f"{found[0].better} of {len(comparison.names)}"])
    return header, rows


def facts(comparison: Comparison) -> list[str]:
    """What the figures are of, a sentence or two a line."""
    asked, total = comparison.asked, len(comparison.dataset.pairs)
    count = len(comparison.names)
    lines = [
        f"{asked.data.name}: {f'{count} of ' * (count < total)}{total} images, protocol "
        f"{asked.protocol}, restored on {comparison.device}.",
    ]
    if comparison.timed:
        lines.append(
            "Seconds and memory are of restoring one image on this machine, the models in turn: "
            f"the median of the calls ({asked.repeats}), and the peak beyond what was there "
            "before, such as the weights."
        )
    lines += [
        f"{label}: {outcome.description}{f' ({outcome.settings})' * bool(outcome.settings)}."
        for label, outcome in comparison.outcomes.items()
    ]
    lines += [f"{label} is left out: {reason}" for label, reason in comparison.left_out.items()]
    for label, outcome in comparison.outcomes.items():
        lines += [f"{label} has no score of {line}" for line in failures(outcome)]
        lines += [f"{label}: {remark}." for remark in remarks(outcome.scores)]
    lines.append(", ".join(f"{name} {version}" for name, version in library_versions().items()))
    return lines


def about_intervals(comparison: Comparison) -> str:
    """How the differences' intervals were made."""
    return (
        f"Each difference is the model's score less that of {comparison.baseline}, image by image; "
        f"the interval is that of its mean by the percentile bootstrap over the images "
        f"({comparison.asked.resamples} resamples, seed {comparison.asked.seed}). It says nothing "
        "of other training seeds, and is too narrow where images are alike, such as frames of one "
        "scene."
    )


def markdown_lines(comparison: Comparison) -> list[str]:
    """The tables, and what they are of."""
    lines = [f"# Models on {comparison.asked.data.name}", ""]
    header, rows = models_table(comparison)
    lines += [*markdown_table(header, rows, numbers=range(1, len(header))), ""]
    header, rows = differences_table(comparison)
    if rows:
        lines += [f"## Differences from {comparison.baseline}", ""]
        lines += [*markdown_table(header, rows, numbers=range(1, len(header))), ""]
        lines += [about_intervals(comparison), ""]
    return [*lines, *(f"- {fact}" for fact in facts(comparison))]


def csv_text(comparison: Comparison) -> str:
    """A row a model, all figures unrounded; differences are those from the baseline."""
    asked = comparison.asked
    rows = []
    for label, outcome in comparison.outcomes.items():
        row: dict[str, object] = {
            "model": label,
            "source": asked.models[label],
            "settings": outcome.settings,
            "dataset": asked.data.name,
            "protocol": asked.protocol,
            "images": len(comparison.names),
            "failed": len(outcome.scores.failed),
        }
        row |= {metric: float(comparison.values(label, metric).mean()) for metric in METRICS}
        row["baseline"] = comparison.baseline
        for metric in METRICS:
            found = comparison.difference(label, comparison.baseline, metric)
            row[f"{metric}_difference"] = found.mean
            row |= {f"{metric}_low": found.low, f"{metric}_high": found.high}
        timing, cost = outcome.timing, outcome.complexity
        row["seconds"] = timing and timing.median
        row["peak_bytes"] = timing and timing.peak_bytes
        row |= {"parameters": cost and cost.parameters, "macs": cost and cost.macs}
        rows.append(row)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
