"""The numbers of the paper's Tables 1 to 4, and the benchmarks that they were measured on.

Methods other than HI-Diff are listed as the paper cites them; an absent score is an N/A there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True)
class Benchmark:
    """A test set that the paper reports on.

    Args:
        name: its name in result folders and option files.
        title: its name in the paper.
        images: how many pairs the complete test set has.
        protocol: the one of `hidiff.metrics.PROTOCOLS` behind the published numbers.
    """

    name: str
    title: str
    images: int
    protocol: str


BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("GoPro", "GoPro", 1111, "matlab"),
        Benchmark("HIDE", "HIDE", 2025, "matlab"),
        Benchmark("RealBlur_R", "RealBlur-R", 980, "realblur"),
        Benchmark("RealBlur_J", "RealBlur-J", 980, "realblur"),
    )
}
"""The test sets of Tables 2 and 3, by name (Section 4.1)."""


def published_protocol(dataset: str) -> str:
    """The protocol of a benchmark's published scores; 'basicsr' for a data set that is none."""
    return BENCHMARKS[dataset].protocol if dataset in BENCHMARKS else "basicsr"


class Score(NamedTuple):
    """PSNR in dB, and SSIM where the paper gives it."""

    psnr: float
    ssim: float | None = None


@dataclass(frozen=True)
class Published:
    """One method of one table.

    Args:
        method: as the paper calls it.
        scores: by the name of the benchmark.
        parameters: millions of them, where the table says so.
        macs: giga multiply-accumulates (the paper's "FLOPs") at 256×256 pixels, likewise.
    """

    method: str
    scores: Mapping[str, Score] = field(default_factory=dict)
    parameters: float | None = None
    macs: float | None = None


Table = tuple[Published, ...]

HI_DIFF = "HI-Diff (ours)"
HI_DIFF_2 = "HI-Diff-2 (ours)"


def _rows(
    benchmarks: tuple[str, ...], *rows: tuple[str, *tuple[tuple[float, float] | None, ...]]
) -> Table:
    """Rows of a method's name and its PSNR and SSIM on each of the benchmarks, None for N/A."""
    return tuple(
        Published(name, {b: Score(*s) for b, s in zip(benchmarks, row, strict=True) if s})
        for name, *row in rows
    )


TABLE_1: Table = (
    Published("Baseline", {"GoPro": Score(31.96, 0.9528)}, 19.13, 117.25),
    Published("Single-Guide", {"GoPro": Score(32.00, 0.9534)}, 21.98, 125.39),
    Published("Split-Training", {"GoPro": Score(30.73, 0.9434)}, 23.99, 125.47),
    Published(HI_DIFF, {"GoPro": Score(32.24, 0.9558)}, 23.99, 125.47),
)
"""Ablation study: trained for 100 000 steps a stage, so its HI-Diff is not that of Table 2."""

TABLE_2: Table = _rows(
    ("GoPro", "HIDE", "RealBlur_R", "RealBlur_J"),
    ("DeblurGAN", (28.70, 0.858), (24.51, 0.871), (33.79, 0.903), (27.97, 0.834)),
    ("DeepDeblur", (29.08, 0.914), (25.73, 0.874), (32.51, 0.841), (27.87, 0.827)),
    ("DeblurGAN-v2", (29.55, 0.934), (26.61, 0.875), (35.26, 0.944), (28.70, 0.866)),
    ("SRN", (30.26, 0.934), (28.36, 0.915), (35.66, 0.947), (28.56, 0.867)),
    ("DBGAN", (31.10, 0.942), (28.94, 0.915), (33.78, 0.909), (24.93, 0.745)),
    ("MT-RNN", (31.15, 0.945), (29.15, 0.918), (35.79, 0.951), (28.44, 0.862)),
    ("DMPHN", (31.20, 0.940), (29.09, 0.924), (35.70, 0.948), (28.42, 0.860)),
    ("SAPHN", (31.85, 0.948), (29.98, 0.930), None, None),
    ("SPAIR", (32.06, 0.953), (30.29, 0.931), None, (28.81, 0.875)),
    ("MIMO-UNet+", (32.45, 0.957), (29.99, 0.930), (35.54, 0.947), (27.63, 0.837)),
    ("TTFA", (32.50, 0.958), (30.55, 0.935), None, None),
    ("MPRNet", (32.66, 0.959), (30.96, 0.939), (35.99, 0.952), (28.70, 0.873)),
    ("HINet", (32.71, 0.959), (30.32, 0.932), (35.75, 0.949), (28.17, 0.849)),
    ("Restormer", (32.92, 0.961), (31.22, 0.942), (36.19, 0.957), (28.96, 0.879)),
    ("Stripformer", (33.08, 0.962), (31.03, 0.940), (36.08, 0.954), (28.82, 0.876)),
    (HI_DIFF, (33.33, 0.964), (31.46, 0.945), (36.28, 0.958), (29.15, 0.890)),
)
"""Everything trained on GoPro."""

TABLE_3: Table = _rows(
    ("RealBlur_R", "RealBlur_J"),
    ("DeblurGAN-v2", (36.44, 0.935), (29.69, 0.870)),
    ("SRN", (38.65, 0.965), (31.38, 0.909)),
    ("MIMO-UNet+", None, (31.92, 0.919)),
    ("MPRNet", (39.31, 0.972), (31.76, 0.922)),
    ("BANet", (39.55, 0.971), (32.00, 0.923)),
    ("Stripformer", (39.84, 0.974), (32.48, 0.929)),
    (HI_DIFF, (41.01, 0.978), (33.70, 0.941)),
)
"""Trained and tested on the same part of RealBlur."""

TABLE_4: Table = (
    Published("DMPHN", {"GoPro": Score(31.20)}, 21.70, 195.44),
    Published("MIMO-UNet+", {"GoPro": Score(32.45)}, 16.11, 150.68),
    Published("MPRNet", {"GoPro": Score(32.66)}, 20.13, 760.02),
    Published("HINet", {"GoPro": Score(32.71)}, 88.67, 67.51),
    Published("Restormer", {"GoPro": Score(32.92)}, 26.13, 154.88),
    Published("Stripformer", {"GoPro": Score(33.08)}, 19.71, 155.03),
    Published(HI_DIFF, {"GoPro": Score(33.33)}, 28.49, 142.62),
    Published(HI_DIFF_2, {"GoPro": Score(33.28)}, 23.99, 125.47),
)
"""Model sizes."""

TABLES: Mapping[int, Table] = {1: TABLE_1, 2: TABLE_2, 3: TABLE_3, 4: TABLE_4}


def find_row(table: int, method: str) -> Published:
    """The row of a method in one of the `TABLES`; KeyError when there is none."""
    return {row.method: row for row in TABLES[table]}[method]


def hi_diff_scores(benchmark: str) -> dict[int, Score]:
    """What Tables 2 (trained on GoPro) and 3 (on RealBlur) report for HI-Diff, by table number.

    Args:
        benchmark: a key of `BENCHMARKS`; the result is empty for any other name.
    """
    rows = {table: find_row(table, HI_DIFF).scores for table in (2, 3)}
    return {table: scores[benchmark] for table, scores in rows.items() if benchmark in scores}
