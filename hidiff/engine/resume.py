"""Whether a run may go on from a training state: what has changed in the option file since."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from hidiff.errors import UserError
from hidiff.options import TrainOptions, flatten

WITHOUT_INFLUENCE = (
    r"name",
    r"num_gpu",
    r"logger\..*",
    r"val\..*",
    r"datasets\.(val|test).*",
    # The place of the data may change; that it is the same data is the user's word.
    r"datasets\.train\.(name|num_worker_per_gpu|timeout|dataroot_\w+|io_backend.*)",
    r"datasets\.train\.(meta_info_file|cache|num_prefetch_queue|pin_memory)",
    r"path\..*",
    r"dist_params\..*",
    r"train\.(max_bad_steps|on_bad_image)",
    # The same computation in another way, to rounding (kernels, compile) or exactly.
    r"kernels",
    r"train\.(compile|activation_checkpointing)",
    # The number of processes and this one matter by their global batch only, which is compared.
    r"train\.reference_world_size",
)
"""Options that do not change the weights that a run ends with."""


_DEFAULTS = {
    f"train.{field.name}": list(field.default) if field.default == () else field.default
    for field in dataclasses.fields(TrainOptions)
}


def options_hash(sections: Mapping[str, Any]) -> str:
    """SHA-256 of the options that decide the result."""
    deciding = {path: v for path, v in flatten(sections).items() if not _is_neutral(path)}
    text = json.dumps(deciding, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_neutral(path: str) -> bool:
    return any(re.fullmatch(pattern, path) for pattern in WITHOUT_INFLUENCE)


def compare_options(before: Mapping[str, Any], now: Mapping[str, Any], where: str) -> list[str]:
    """Notices about options that have changed without changing the result.

    Args:
        before: the sections that the state was saved with.
        now: those of this run.
        where: the state's origin, for messages.

    Raises:
        UserError: an option has changed that changes the result.
    """
    old, new = flatten(before), flatten(now)
    changed = {
        path: f"{path}: {old.get(path, 'absent')} → {new.get(path, 'absent')}"
        for path in sorted({*old, *new})
        # An option that is left out is the same as one that says what it is by default.
        if old.get(path, _DEFAULTS.get(path)) != new.get(path, _DEFAULTS.get(path))
    }
    deciding = [line for path, line in changed.items() if not _is_neutral(path)]
    if deciding:
        raise UserError(
            f"{where} was saved with other options, and going on would give neither run's result: "
            f"{'; '.join(deciding)}. Resume with the options it was started with, or start another "
            "experiment (another name) from its weights with path.pretrain_network_*"
        )
    return [f"changed since the run was started: {line}" for line in changed.values()]
