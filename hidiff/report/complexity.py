"""Parameters and multiply-accumulates of Tables 1 and 4, measured beside printed.

A second figure is counted as the paper counts, see `hidiff.benchmark.macs.BESIDES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hidiff.archs.baselines import HINet
from hidiff.benchmark.macs import Complexity, count_operations, model_complexity
from hidiff.metrics.published import HI_DIFF, HI_DIFF_2, TABLES
from hidiff.options import load_options
from hidiff.utils.tables import text_table

PAPER_SIZE = (3, 256, 256)


class Row(NamedTuple):
    """A row that can be built here.

    Args:
        table: of the paper; 4 also for networks that the paper does not list.
        method: as the paper calls it.
        options: an option file, or its sections.
        times_t: whether the paper counts the denoiser T times, and not once.
    """

    table: int
    method: str
    options: str | Mapping[str, Any]
    times_t: bool = False


def _alone(kind: str, model: str = "Regression", **options: Any) -> dict[str, Any]:
    """The sections of a model with one network."""
    return {"model_type": model, "network_g": {"type": kind, **options}}


HINET = "HINet"
PAPER_ROWS: tuple[Row, ...] = (
    Row(1, "Baseline", "options/ablation/Baseline.yml"),
    Row(1, "Single-Guide", "options/ablation/Single_Guide_S2.yml"),
    Row(1, "Split-Training", "options/ablation/Split_Training_S2.yml"),
    Row(1, HI_DIFF, "options/ablation/HI_Diff_S2.yml"),
    Row(4, "DMPHN", _alone("DMPHN")),
    Row(4, "MIMO-UNet+", _alone("MIMOUNetPlus")),
    Row(4, "MPRNet", _alone("MPRNet")),
    Row(4, HINET, _alone("HINet", hin_position_left=3, hin_position_right=4)),
    Row(4, "Restormer", _alone("Transformer", guidance="none")),
    Row(4, "Stripformer", _alone("Stripformer")),
    Row(4, HI_DIFF, "options/train/GoPro_S2.yml", times_t=True),
    Row(4, HI_DIFF_2, "options/ablation/HI_Diff_S2.yml"),
    Row(4, "NAFNet, width 32", _alone("NAFNet", width=32)),
    Row(4, "NAFNet, width 64", _alone("NAFNet", width=64)),
    Row(4, "DiffIR, stage 1", _alone("DiffIRS1", "DiffIR_S1")),
    Row(4, "DiffIR, stage 2", _alone("DiffIRS2", "DiffIR_S2")),
)
"""The rows of the paper, then the networks that it does not list."""

NOTES = {
    "Single-Guide": "the network as the paper describes it has the printed parameters, and not the "
    "printed figure",
    HINET: "the printed figure is that of the first of two U-shapes, with half instance "
    "normalisation at all of its levels; both U-shapes make {whole:.2f}",
}
"""Why a figure is another than the printed one, where counting alike does not explain it."""


NETWORK_HEADER = ("network", "params M", "MACs G a call", "calls", "MACs G")


def record(name: str, counted: Complexity) -> dict[str, Any]:
    """What --json writes about one model."""
    return {
        "name": name,
        "size": list(counted.size),
        "timesteps": counted.timesteps,
        "parameters": counted.parameters,
        "macs_denoiser_once": counted.macs_once,
        "macs": counted.macs,
        "networks": {key: asdict(network) for key, network in counted.networks.items()},
    }


def _first_stage_of_hinet(size: tuple[int, int, int]) -> int:
    """What fvcore counts in HINet's first U-shape, as its authors build it by default."""
    with torch.device("meta"):
        macs, besides = count_operations(HINet().eval().stage1, torch.empty(1, *size))
    return macs + sum(besides.values())


def as_the_paper_counts(row: Row, counted: Complexity) -> tuple[int, str]:
    """The operations that the paper's counter finds in a model, and what makes the difference."""
    macs = counted.macs if row.times_t else counted.macs_once
    total = macs + sum(counted.besides.values())
    terms = [
        f"{'-' if number < 0 else '+'} {abs(number) / 1e9:.3f} {kind}"
        for kind, number in counted.besides.items()
        if abs(number) >= 0.0005e9
    ]
    why = f"{macs / 1e9:.3f} {' '.join(terms)} = {total / 1e9:.3f}" if terms else ""
    if row.method == HINET:
        note = NOTES[HINET].format(whole=total / 1e9)
        return _first_stage_of_hinet(counted.size), note
    return total, "; ".join(filter(None, [why, NOTES.get(row.method)]))


def paper_report(size: tuple[int, int, int]) -> tuple[str, list[dict[str, Any]]]:
    """The rows of Tables 1 and 4 as text and as records."""
    header = [
        "model",
        "params M",
        "paper",
        "MACs G once",
        "× T",
        "T",
        "as the paper counts",
        "paper",
    ]
    rows, records, notes = [], [], []
    for row in PAPER_ROWS:
        paper = next((known for known in TABLES[row.table] if known.method == row.method), None)
        options = row.options
        if isinstance(options, str):
            options = load_options(options).sections
        counted = model_complexity(options, size)
        printed = paper.macs if paper and counted.size == PAPER_SIZE else None
        alike, why = as_the_paper_counts(row, counted)
        name = f"Table {row.table}  {row.method}" if paper else f"         {row.method}"
        rows.append(
            [
                name,
                f"{counted.parameters / 1e6:.3f}",
                f"{paper.parameters:.2f}" if paper else "-",
                f"{counted.macs_once / 1e9:.3f}",
                f"{counted.macs / 1e9:.3f}",
                str(counted.timesteps),
                f"{alike / 1e9:.2f}",
                f"{printed:.2f}" if printed else "-",
            ]
        )
        if why:
            notes.append(f"{row.method}: {why}")
        records.append(
            {
                **record(" ".join(name.split()), counted),
                "paper_parameters_m": paper and paper.parameters,
                "paper_macs_g": printed,
                "macs_as_the_paper": alike,
                "difference": why,
            }
        )
    return "\n".join([*text_table(header, rows), "", *notes]), records


def file_report(
    files: Sequence[Path], size: tuple[int, int, int]
) -> tuple[str, list[dict[str, Any]]]:
    """Every network of the option files, as text and as records."""
    parts, records = [], []
    for file in files:
        counted = model_complexity(load_options(file).sections, size)
        rows = []
        for name, network in counted.networks.items():
            rows.append(
                [
                    name,
                    f"{network.parameters / 1e6:.3f}",
                    f"{network.macs / 1e9:.3f}",
                    str(network.calls),
                    f"{network.macs * network.calls / 1e9:.3f}",
                ]
            )
        rows.append(
            [
                "total",
                f"{counted.parameters / 1e6:.3f}",
                f"{counted.macs_once / 1e9:.3f}",
                "",
                f"{counted.macs / 1e9:.3f}",
            ]
        )
        parts.append("\n".join([str(file), *text_table(NETWORK_HEADER, rows)]))
        records.append(record(str(file), counted))
    return "\n\n".join(parts), records
