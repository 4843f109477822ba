"""Parameters and multiply-accumulates of Tables 1 and 4, counted beside printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from hidiff.metrics.published import HI_DIFF, HI_DIFF_2, TABLES
from hidiff.options import load_options
from hidiff.report.macs import PAPER_SIZE, Complexity, model_complexity
from hidiff.utils.tables import text_table


class Row(NamedTuple):
    """A model that can be built here.

    Args:
        table: of the paper; 4 also for networks that the paper does not list.
        method: as the paper calls it.
        options: an option file, or the sections of a network alone.
    """

    table: int
    method: str
    options: str | Mapping[str, Any]


def _alone(kind: str, **options: Any) -> dict[str, Any]:
    """The sections of a model with one network."""
    return {"model_type": "Regression", "network_g": {"type": kind, **options}}


PAPER_ROWS: tuple[Row, ...] = (
    Row(1, "Baseline", "options/ablation/Baseline.yml"),
    Row(1, "Single-Guide", "options/ablation/Single_Guide_S2.yml"),
    Row(1, "Split-Training", "options/ablation/Split_Training_S2.yml"),
    Row(1, HI_DIFF, "options/ablation/HI_Diff_S2.yml"),
    Row(4, "DMPHN", _alone("DMPHN")),
    Row(4, "MIMO-UNet+", _alone("MIMOUNetPlus")),
    Row(4, "MPRNet", _alone("MPRNet")),
    Row(4, "HINet", _alone("HINet", hin_position_left=3, hin_position_right=4)),
    Row(4, "Restormer", _alone("Transformer", guidance="none")),
    Row(4, "Stripformer", _alone("Stripformer")),
    Row(4, HI_DIFF, "options/train/GoPro_S2.yml"),
    Row(4, HI_DIFF_2, "options/ablation/HI_Diff_S2.yml"),
    Row(4, "NAFNet, width 32", _alone("NAFNet", width=32)),
    Row(4, "NAFNet, width 64", _alone("NAFNet", width=64)),
    Row(4, "DiffIR, stage 1", "options/baselines/diffir_S1.yml"),
    Row(4, "DiffIR, stage 2", "options/baselines/diffir_S2.yml"),
)
"""The rows of the paper, then the networks that it does not list."""


def record(name: str, counted: Complexity) -> dict[str, Any]:
    """What `--json` prints about one model."""
    return {
        "name": name,
        "size": list(counted.size),
        "timesteps": counted.timesteps,
        "parameters": counted.parameters,
        "macs_denoiser_once": counted.macs_once,
        "macs": counted.macs,
        "networks": {key: asdict(network) for key, network in counted.networks.items()},
    }


def paper_report(
    size: tuple[int, int], rows: Sequence[Row] = PAPER_ROWS
) -> tuple[list[str], list[dict[str, Any]]]:
    """The rows of Tables 1 and 4 as lines of text and as records.

    The paper's figures are those of 256×256 pixels, and stand beside no other size.
    """
    header = ["model", "params (M)", "paper", "MACs (G) once", "× T", "T", "paper"]
    cells, records = [], []
    for row in rows:
        paper = next((known for known in TABLES[row.table] if known.method == row.method), None)
        options = row.options
        if isinstance(options, str):
            options = load_options(options).sections
        counted = model_complexity(options, size)
        printed = paper.macs if paper and counted.size == PAPER_SIZE else None
        name = f"{f'Table {row.table}' if paper else '':9}{row.method}"
        cells.append(
            [
                name,
                f"{counted.parameters / 1e6:.3f}",
                f"{paper.parameters:.2f}" if paper else "-",
                f"{counted.macs_once / 1e9:.3f}",
                f"{counted.macs / 1e9:.3f}",
                str(counted.timesteps),
                f"{printed:.2f}" if printed else "-",
            ]
        )
        of_paper = {"paper_parameters_m": paper and paper.parameters, "paper_macs_g": printed}
        records.append(record(" ".join(name.split()), counted) | of_paper)
    return text_table(header, cells), records


def file_report(
    files: Sequence[Path], size: tuple[int, int]
) -> tuple[list[str], list[dict[str, Any]]]:
    """Every network of the option files, as lines of text and as records."""
    header = ("network", "params (M)", "MACs (G) a call", "calls", "MACs (G)")
    lines, records = [], []
    for file in files:
        counted = model_complexity(load_options(file).sections, size)
        rows = [
            [
                name,
                f"{network.parameters / 1e6:.3f}",
                f"{network.macs / 1e9:.3f}",
                str(network.calls),
                f"{network.macs * network.calls / 1e9:.3f}",
            ]
            for name, network in counted.networks.items()
        ]
        once = f"{counted.macs_once / 1e9:.3f}"
        total = f"{counted.macs / 1e9:.3f}"
        rows.append(["total", f"{counted.parameters / 1e6:.3f}", once, "", total])
        lines += [str(file), *text_table(header, rows), ""]
        records.append(record(str(file), counted))
    return lines, records
