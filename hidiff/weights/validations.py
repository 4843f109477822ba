"""What the validations of a training say about its models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hidiff.utils.errors import UserError
from hidiff.utils.torch_file import load_torch_file


def _newest_state(experiment: Path) -> dict[str, Any]:
    """The newest training state; empty without one.

    Raises:
        UserError: it is damaged.
    """
    folder = experiment / "training_states"
    steps = [int(path.stem) for path in folder.glob("*.state") if path.stem.isdigit()]
    if not steps:
        return {}
    content, _ = load_torch_file(folder / f"{max(steps)}.state", str(experiment))
    return content if isinstance(content, dict) else {}


def best_step(experiment: Path) -> tuple[int, str]:
    """The step whose validation had the best PSNR (or other first metric), and words about it.

    Raises:
        UserError: no validation is on record.
    """
    best = _newest_state(experiment).get("best")
    if not best:
        raise UserError(
            f"{experiment}@best: no validation is on record in its training states; name a step, "
            "or leave out @best for the newest weights"
        )
    key = next((key for key in best if key.endswith("/psnr")), next(iter(best)))
    top = best[key]
    return top["step"], f"best {key}: {top['value']:.4f} after step {top['step']}"


def validation_scores(
    experiment: Path, step: int | None, *, upper_bound: bool
) -> list[dict[str, Any]]:
    """What the validations gave the model of a step, where it was the best so far.

    Raises:
        UserError: the training state that has the scores is damaged.
    """
    best = _newest_state(experiment).get("best", {})
    rows: dict[str, dict[str, Any]] = {}
    for key, top in best.items():
        dataset, _, metric = key.rpartition("/")
        if top["step"] == step:
            row = {
                "dataset": dataset,
                "protocol": "basicsr",
                "source": "validation",
                "upper_bound": upper_bound,
                "restored": {},
            }
            rows.setdefault(dataset, row)["restored"][metric] = top["value"]
    return list(rows.values())
