"""Parameters and multiply-accumulates of Tables 1 and 4, measured beside printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hidiff.cost.macs import Complexity, model_complexity
from hidiff.metrics.published import HI_DIFF, HI_DIFF_2, find_row
from hidiff.options import load_options
from hidiff.tables import text_table

PAPER_SIZE = (3, 256, 256)


RESTORMER: Mapping[str, Any] = {
    "model_type": "Restormer",
    "network_g": {"type": "Transformer", "guidance": "none"},
}
"""Restormer's own sizes are the Transformer's defaults."""

PAPER_ROWS: tuple[tuple[int, str, str | Mapping[str, Any]], ...] = (
    (1, "Baseline", "options/ablation/Baseline.yml"),
    (1, "Single-Guide", "options/ablation/Single_Guide_S2.yml"),
    (1, "Split-Training", "options/ablation/Split_Training_S2.yml"),
    (1, HI_DIFF, "options/ablation/HI_Diff_S2.yml"),
    (4, "Restormer", RESTORMER),
    (4, HI_DIFF, "options/train/GoPro_S2.yml"),
    (4, HI_DIFF_2, "options/ablation/HI_Diff_S2.yml"),
)
"""The rows of the paper that can be built here: table, method, and option file or sections."""


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


def paper_report(size: tuple[int, int, int]) -> tuple[str, list[dict[str, Any]]]:
    """The rows of Tables 1 and 4 as text and as records."""
    header = ["model", "params M", "paper", "MACs G once", "× T", "T", "paper"]
    rows, records = [], []
    for table, method, options in PAPER_ROWS:
        paper = find_row(table, method)
        if isinstance(options, str):
            options = load_options(options).sections
        counted = model_complexity(options, size)
        comparable = counted.size == PAPER_SIZE
        rows.append(
            [
                f"Table {table}  {method}",
                f"{counted.parameters / 1e6:.3f}",
                f"{paper.parameters:.2f}",
                f"{counted.macs_once / 1e9:.3f}",
                f"{counted.macs / 1e9:.3f}",
                str(counted.timesteps),
                f"{paper.macs:.2f}" if comparable else "-",
            ]
        )
        records.append(
            {
                **record(f"Table {table} {method}", counted),
                "paper_parameters_m": paper.parameters,
                "paper_macs_g": paper.macs if comparable else None,
            }
        )
    return "\n".join(text_table(header, rows)), records


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
