"""Option lines that the figures of `hidiff gpu-check` speak for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hidiff.benchmark.gpu_setting import Row

WORTH = 1.1
"""Speedup from which on fewer digits, or the time for compiling, are worth it."""

EXACT_FIRST = ("fp32", "tf32", "bf16")


def option_lines(items: Mapping[str, Sequence[Row]]) -> list[str]:
    """Lines such as 'train.precision: bf16  # 1.9 × fp32, …', where there are figures for them.

    Args:
        items: the rows of each item, by its name.
    """
    training, restoring = items.get("training", []), items.get("restoring", [])
    lines = []
    wrong = _wrong_precisions(items)
    for option, rows in (("train.precision", training), ("val.precision", restoring)):
        if (speeds := _speeds(rows)) and "fp32" in speeds:
            name = _fastest({n: s for n, s in speeds.items() if n not in wrong})
            lines.append(f"{option}: {name}  # {_why(name, speeds, wrong, items)}")
    with_triton = [r for r in items.get("networks", []) if "Triton" in r.get("against", "")]
    lines += _kernels([*training, *restoring], [*items.get("kernels", []), *with_triton])
    for option, rows in (
        ("train.compile", [row for row in items.get("compile", []) if "fits" in row]),
        ("val.compile", [row for row in items.get("compile", []) if "fits" not in row]),
    ):
        gains = [row["speedup"] for row in rows if "+compile" in row["variant"] and _timed(row)]
        if gains:
            lines.append(
                f"{option}: {str(min(gains) > WORTH).lower()}  # {min(gains):.2f} × as fast"
            )
    return lines + _memory(training)


def _timed(row: Row) -> bool:
    return "speedup" in row and "time [ms]" in row


def _speeds(rows: Sequence[Row]) -> dict[str, float]:
    """Geometric mean of the speedup over the plain formulas, by precision; the better kernels."""
    found: dict[str, list[float]] = {}
    for row in filter(_timed, rows):
        name, *more = row["variant"].split("+")
        if name in EXACT_FIRST and more in ([], ["eager"]):
            found.setdefault(f"{name}{'+' if more else ''}", []).append(row["speedup"])
    means: dict[str, float] = {}
    for key, values in found.items():
        mean = 1.0
        for value in values:
            mean *= value ** (1 / len(values))
        name = key.rstrip("+")
        means[name] = max(mean, means.get(name, 0.0))
    return means


def _wrong_precisions(items: Mapping[str, Sequence[Row]]) -> set[str]:
    """Those with a negative verdict on their numbers."""
    wrong = {
        row["precision"]
        for row in items.get("networks", [])
        if row.get("ok") is False and "Triton" not in row.get("against", "")
    }
    return wrong | {
        row["against fp32"] for row in items.get("curves", []) if row.get("ok") is False
    }


def _fastest(speeds: Mapping[str, float]) -> str:
    """The fastest; one with fewer digits must gain as much as `WORTH`."""
    best = "fp32"
    for name in EXACT_FIRST[1:]:
        if speeds.get(name, 0.0) > WORTH * speeds.get(best, 0.0):
            best = name
    return best


def _why(
    name: str, speeds: Mapping[str, float], wrong: set[str], items: Mapping[str, Sequence[Row]]
) -> str:
    parts = [f"{speeds[name] / speeds['fp32']:.2f} × fp32"]
    parts += [f"{other} {speeds[other] / speeds['fp32']:.2f} ×" for other in speeds if other not in
              ("fp32", name)]  # fmt: skip
    errors = [
        row["difference"]
        for row in items.get("networks", [])
        if row["precision"] == name and row.get("value") == "restored" and "difference" in row
    ]
    if errors:
        parts.append(f"largest difference of restored images {max(errors):.1g}")
    for row in items.get("curves", []):
        if row["against fp32"] == name:
            parts.append(f"loss curve {row['mean difference']:.2%} from fp32's")
    if wrong:
        parts.append(f"not {' or '.join(sorted(wrong))}, whose numbers are wrong")
    return "; ".join(parts)


def _kernels(timed: Sequence[Row], checked: Sequence[Row]) -> list[str]:
    """'auto' unless a kernel is wrong, or choosing makes it slower."""
    wrong = [
        f"{row['kernel']} {row['shape']}" if "kernel" in row else f"{row['precision']} networks"
        for row in checked
        if row.get("ok") is False
    ]
    if wrong:
        return [f"kernels: eager  # wrong or failing: {', '.join(dict.fromkeys(wrong))}"]
    pairs: dict[Any, dict[str, float]] = {}
    for row in filter(_timed, timed):
        if row["variant"] in ("bf16", "bf16+eager"):
            pairs.setdefault((row.get("stage"), row["case"]), {})[row["variant"]] = row["time [ms]"]
    gains = [pair["bf16+eager"] / pair["bf16"] for pair in pairs.values() if len(pair) == 2]
    if not gains:
        return []
    middle = sorted(gains)[len(gains) // 2]
    choice = "auto" if middle >= 1 else "eager"
    return [f"kernels: {choice}  # with bf16 {middle:.2f} × as fast as eager, in the middle"]


def _memory(training: Sequence[Row]) -> list[str]:
    """Whether batches must be cut, and what activations could be computed again."""
    fits = dict.fromkeys(row["fits"] for row in training if "fits" in row)
    if not fits:
        return []
    cut = [text for text in fits if len(set(text.split(" of "))) > 1]
    if not cut:
        return [
            "train.micro_batch: ~  # every phase's batch fits as a whole",
            "train.activation_checkpointing: []",
        ]
    return [
        f"train.micro_batch: auto  # at once fit {', '.join(cut)} images",
        "train.activation_checkpointing: []  # [1] where not even one image fits",
    ]
