"""Scores for people: the table that a test prints, and what makes a score doubtful."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from hidiff.data.image import listing
from hidiff.evaluation.record import ImageScore, Scores
from hidiff.metrics.published import BENCHMARKS, Benchmark, hi_diff_scores
from hidiff.utils.tables import text_table

FAR_OFF = 5.0
"""dB between a score and the published ones from which a mistake in the folders is likely."""

# RealBlur's two parts show the same scenes under the same names.
_EASILY_SWAPPED = {"RealBlur_R": "RealBlur_J", "RealBlur_J": "RealBlur_R"}


def score_lines(scores: Sequence[Scores]) -> list[str]:
    """A table of the means with the paper's below, then remarks and failures."""
    columns = [
        (name, side)
        for name in sorted({name for data in scores for name in data.mean()})
        for side in ("blurry", "restored")
        if any(name in data.mean(side) for data in scores)
    ]
    rows, notes = [], []
    for data in scores:
        values = [data.mean(side).get(name) for name, side in columns]
        cells = ["-" if value is None else f"{value:.4f}" for value in values]
        done = sum(image.error is None for image in data.first)
        rows.append([data.dataset, data.protocol, data.local or "?", str(done), *cells])
        for table, published in hi_diff_scores(data.dataset).items():
            found = {"psnr": f"{published.psnr:.2f}", "ssim": f"{published.ssim:.3f}"}
            cells = [found.get(name, "") if side == "restored" else "" for name, side in columns]
            of_paper = BENCHMARKS[data.dataset]
            about = [of_paper.protocol, "none", str(of_paper.images)]
            rows.append([f"  paper, Table {table}", *about, *cells])
        notes += [f"{data.dataset}: {note}" for note in (*_spread(data), *remarks(data))]
        notes += _failures(data)
    header = ["data set", "protocol", "local", "images"]
    return [*text_table([*header, *(f"{side} {name}" for name, side in columns)], rows), *notes]


def _spread(data: Scores) -> list[str]:
    """How much the scores depend on the noise."""
    mean, seeds = data.mean(), len(data.runs)
    return [
        f"{name} over {seeds} seeds {mean[name]:.4f} ± {spread:.4f}"
        for name, spread in data.deviation().items()
    ]


def _failures(data: Scores) -> list[str]:
    """The failures, one line for each reason."""
    names: dict[str, list[str]] = {}
    for name, error in data.failed.items():
        names.setdefault(error, []).append(name)
    return [
        f"{data.dataset}/{failed[0]}: {error}"
        if len(failed) == 1
        else f"{data.dataset}: {len(failed)} images ({listing(failed, 20)}): {error}"
        for error, failed in names.items()
    ]


def cropped_note(images: Iterable[ImageScore]) -> str | None:
    """That sharp images were larger than the blurry ones; None if none was."""
    names = [image.name for image in images if image.cropped]
    if not names:
        return None
    subject = "1 sharp image is" if len(names) == 1 else f"{len(names)} sharp images are"
    return (
        f"{subject} larger than the blurry one; only the part at the top left was used "
        f"({listing(names)})"
    )


def remarks(data: Scores) -> list[str]:
    """What to know about the scores: what they don't measure, and what makes them doubtful."""
    if data.target is None:
        what = "metrics without reference alone" if data.mean() else "nothing was scored"
        return [f"no ground truth, {what}"]
    found = []
    if data.upper_bound:
        found.append("stage 1 sees the sharp image: an upper bound, no deblurring score")
    if note := cropped_note(data.first):
        found.append(note)
    identical = [image.name for image in data.scored if image.restored.get("psnr") == math.inf]
    if identical:
        found.append(
            f"restored images identical to the sharp ones: {len(identical)} "
            f"({listing(identical)}); was the right folder given as the sharp one?"
        )
    unaligned = [image.name for image in data.first if image.aligned is False]
    if unaligned:
        found.append(
            f"no alignment was found for {len(unaligned)} of {len(data.scored)} images; "
            f"they are scored without ({listing(unaligned)})"
        )
    if data.benchmark is not None and data.scored:
        found += _beside_the_paper(data, data.benchmark)
    return found


def _beside_the_paper(data: Scores, benchmark: Benchmark) -> list[str]:
    """What keeps scores from being compared with the published ones."""
    found = []
    if len(data.scored) != benchmark.images:
        found.append(
            f"{len(data.scored)} images; the benchmark {benchmark.title} has {benchmark.images}"
        )
    other = _EASILY_SWAPPED.get(benchmark.name)
    question = f"is this {other} given for {benchmark.name}?"
    if other is not None and data.target is not None and other in Path(data.target).parts:
        found.append(
            f"the sharp images of {benchmark.name} were read from {data.target}: {question}"
        )
    if data.protocol != benchmark.protocol:
        found.append(
            f"the published scores of {benchmark.title} follow the protocol "
            f"'{benchmark.protocol}', this one '{data.protocol}'"
        )
    if data.local not in (None, "none"):
        found.append(f"restored in the local mode '{data.local}', published ones as a whole")
    psnr = data.mean().get("psnr", math.nan)
    published = [score.psnr for score in hi_diff_scores(benchmark.name).values()]
    if all(abs(psnr - value) > FAR_OFF for value in published):
        values = ", ".join(f"{value:.2f}" for value in published)
        hint = "is this another folder than intended, or a network that is not trained?"
        found.append(
            f"{psnr:.2f} dB is more than {FAR_OFF:g} dB off every score that the paper reports "
            f"for HI-Diff on {benchmark.title} ({values} dB): {hint}"
            + ("" if other is None else f" Or {question}")
        )
    return found
