"""Scoring a folder of restored images against the folder of sharp ones."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from hidiff.data.image import list_images, listing, read_image, to_uint8
from hidiff.errors import UserError
from hidiff.metrics import PROTOCOLS, evaluate_pair
from hidiff.metrics.published import BENCHMARKS, Benchmark, hi_diff_scores
from hidiff.parallel import run_in_order
from hidiff.scoring.versions import library_versions
from hidiff.typecheck import suggestion

FAR_OFF = 5.0
"""dB between a score and the published ones from which a mistake in the folders is likely."""

# RealBlur's two parts show the same scenes under the same names.
_EASILY_SWAPPED = {"RealBlur_R": "RealBlur_J", "RealBlur_J": "RealBlur_R"}


@dataclass(frozen=True)
class ImageScore:
    """What became of one pair.

    PSNR in dB and SSIM, and with the protocol 'realblur' whether the alignment succeeded; or
    `error`, why the pair has no score.
    """

    name: str
    psnr: float | None = None
    ssim: float | None = None
    aligned: bool | None = None
    error: str | None = None


@dataclass(frozen=True)
class FolderScores:
    """The scores of a folder, pair by pair.

    Args:
        protocol: one of `hidiff.metrics.PROTOCOLS`.
        dataset: the name of the data set; the benchmark that these are the images of, if there is
            one of this name in `hidiff.metrics.published.BENCHMARKS`.
        restored, target: the two folders.
        images: one entry for each pair, in the order of their names.
        missing_restored: names of sharp images that have no restored one.
        missing_target: names of restored images that have no sharp one.
    """

    protocol: str
    dataset: str
    restored: Path
    target: Path
    images: tuple[ImageScore, ...]
    missing_restored: tuple[str, ...] = ()
    missing_target: tuple[str, ...] = ()

    @property
    def benchmark(self) -> Benchmark | None:
        """The benchmark of that name, if it is one."""
        return BENCHMARKS.get(self.dataset)

    @property
    def scored(self) -> list[ImageScore]:
        """The pairs that have scores."""
        return [image for image in self.images if image.error is None]

    @property
    def failed(self) -> dict[str, str]:
        """Why the other pairs have none, by name."""
        return {image.name: image.error for image in self.images if image.error is not None}

    @property
    def unaligned(self) -> list[str]:
        """Pairs for which 'realblur' found no alignment; they are scored without."""
        return [image.name for image in self.images if image.aligned is False]

    @property
    def all_scored(self) -> bool:
        """Whether every image of both folders is part of the score."""
        return not (self.failed or self.missing_restored or self.missing_target)

    def mean(self) -> dict[str, float]:
        """Mean 'psnr' (dB) and 'ssim' of the scored pairs; empty when there are none.

        An infinite PSNR (identical images) makes an infinite mean. The sums are exact, so the order
        in which worker processes finish changes nothing.
        """
        rows = self.scored
        if not rows:
            return {}
        return {
            "psnr": math.fsum(row.psnr for row in rows) / len(rows),
            "ssim": math.fsum(row.ssim for row in rows) / len(rows),
        }

    def count_note(self) -> str | None:
        """That the benchmark has another number of pairs than were scored; None if it has not."""
        benchmark, count = self.benchmark, len(self.scored)
        if benchmark is None or count == benchmark.images:
            return None
        return f"the benchmark {benchmark.title} has {benchmark.images}"

    def warnings(self) -> list[str]:
        """What makes the score doubtful, in sentences."""
        found = []
        identical = [image.name for image in self.scored if image.psnr == math.inf]
        if identical:
            found.append(
                f"{len(identical)} restored images are identical to the sharp ones "
                f"({listing(identical)}); was the right folder given as the sharp one?"
            )
        if self.unaligned:
            found.append(
                f"no alignment was found for {len(self.unaligned)} of {len(self.scored)} images; "
                f"they are scored without ({listing(self.unaligned)})"
            )
        if self.benchmark is not None:
            found += self._benchmark_warnings(self.benchmark)
        return found

    def _benchmark_warnings(self, benchmark: Benchmark) -> list[str]:
        found = []
        other = _EASILY_SWAPPED.get(benchmark.name)
        if other in self.target.parts:
            found.append(
                f"the sharp images of {benchmark.name} were read from {self.target}: "
                f"is this {other} given for {benchmark.name}?"
            )
        if self.protocol != benchmark.protocol:
            found.append(
                f"the published scores of {benchmark.title} follow the protocol "
                f"'{benchmark.protocol}', this one '{self.protocol}'"
            )
        psnr = self.mean().get("psnr", math.nan)
        published = [score.psnr for score in hi_diff_scores(benchmark.name).values()]
        if all(abs(psnr - value) > FAR_OFF for value in published):
            swapped = f"is this {other} given for {benchmark.name}, " * bool(other)
            found.append(
                f"{psnr:.2f} dB is more than {FAR_OFF:g} dB off every score that the paper reports "
                f"for HI-Diff on {benchmark.title} "
                f"({', '.join(f'{value:.2f}' for value in published)} dB): "
                f"{swapped or 'is this '}another folder than intended, or a network that is not "
                "trained?"
            )
        return found

    def summary(self) -> dict[str, Any]:
        """Everything but the single scores, for JSON; infinite means are written as text."""
        return {
            "dataset": self.dataset,
            "protocol": self.protocol,
            "restored": str(self.restored),
            "target": str(self.target),
            "counts": {
                "scored": len(self.scored),
                "failed": len(self.failed),
                "missing_restored": len(self.missing_restored),
                "missing_target": len(self.missing_target),
                "unaligned": len(self.unaligned) if self.protocol == "realblur" else None,
                "benchmark": self.benchmark.images if self.benchmark else None,
            },
            "mean": {
                name: value if math.isfinite(value) else str(value)
                for name, value in self.mean().items()
            },
            "count_note": self.count_note(),
            "warnings": self.warnings(),
            "failed": self.failed,
            "missing_restored": list(self.missing_restored),
            "missing_target": list(self.missing_target),
            "unaligned": self.unaligned,
            "versions": library_versions(),
        }


class _Task(NamedTuple):
    name: str
    restored: Path
    target: Path
    protocol: str


def score_folders(
    restored: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    protocol: str,
    dataset: str,
    suffix: str = "",
    jobs: int = 1,
    progress: bool = True,
) -> FolderScores:
    """Score every restored image against the sharp one of the same name.

    A pair that is damaged or of two sizes becomes a failure, and the rest goes on. Every process
    uses one core and holds one pair at a time; only numbers are kept.

    Args:
        restored, target: folders of images, 8 or 16 bits; 16 are rounded to 8.
        protocol: one of `hidiff.metrics.PROTOCOLS`.
        dataset: name of the data set, for the report.
        suffix: what the restored images' names have at their end and the sharp ones' have not
            (test.py's `val.suffix`, with its underscore); other restored images are left out.
        jobs: worker processes; with 1 this process does the work. The scores do not depend on it.
            Workers import the main module, so a program that asks for them needs the usual
            `if __name__ == "__main__":`.
        progress: show a progress bar on standard error (if that is a terminal).

    Raises:
        UserError: no such protocol; a folder is missing or empty, or they are one folder; no name
            occurs in both; a worker process was killed.
    """
    if protocol not in PROTOCOLS:
        raise UserError(
            f"protocol: there is no evaluation protocol '{protocol}'"
            + suggestion(protocol, PROTOCOLS)
        )
    restored, target = Path(restored), Path(target)
    sharp = list_images(target, "sharp images")
    found = {
        name.removesuffix(suffix): path
        for name, path in list_images(restored, "restored images").items()
        if name.endswith(suffix)
    }
    if restored.samefile(target):
        raise UserError(f"{restored} is given both as the restored and as the sharp images")
    names = sorted(found.keys() & sharp.keys())
    if not names:
        ending = f" (without the suffix '{suffix}')" if suffix else ""
        raise UserError(
            f"images are paired by name, and no name{ending} is both in {restored} "
            f"({listing(found, 2) or 'none'}) and in {target} ({listing(sharp, 2)}); "
            "are these folders of the same data set?"
        )
    tasks = [_Task(name, found[name], sharp[name], protocol) for name in names]
    hidden = None if progress else True
    scores = run_in_order(tasks, read=_score_pair, workers=min(jobs, len(tasks)), processes=True)
    results = tqdm(scores, dataset, len(tasks), unit="image", disable=hidden)
    return FolderScores(
        protocol,
        dataset,
        restored,
        target,
        tuple(results),
        missing_restored=tuple(sorted(sharp.keys() - found.keys())),
        missing_target=tuple(sorted(found.keys() - sharp.keys())),
    )


def _score_pair(task: _Task) -> ImageScore:
    try:
        images = [to_uint8(read_image(path)) for path in (task.restored, task.target)]
        return ImageScore(task.name, **evaluate_pair(*images, protocol=task.protocol))
    except UserError as error:
        return ImageScore(task.name, error=str(error))
