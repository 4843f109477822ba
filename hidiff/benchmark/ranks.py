"""The program of one process that `hidiff gpu-check` starts with torchrun.

    torchrun --nproc_per_node=2 -m hidiff.benchmark.ranks OPTIONS.yml [SECTION:OPTION=VALUE …]

Trains as the option file says, and prints one line of JSON: whether the processes have exchanged
numbers rightly, and a hash of each one's weights.
"""

from __future__ import annotations

import hashlib
import json
import sys

from hidiff.engine.distributed import start_processes
from hidiff.engine.trainer import Trainer
from hidiff.errors import friendly_errors
from hidiff.models import DeblurModel
from hidiff.options import load_options

MARK = "ranks: "
"""Begins the line."""


def weights_hash(model: DeblurModel) -> str:
    """SHA-256 of all weights, bit by bit."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    """Train, compare and print."""
    options = load_options(sys.argv[1], sys.argv[2:])
    with start_processes(options, "pytorch") as processes:
        exchanged = processes.gather(processes.sums_rightly())
        trainer = Trainer(options, processes)
        trainer.run()
        hashes = processes.gather(weights_hash(trainer.model))
        if processes.is_main:
            figures = {"exchanged": all(exchanged), "weights": hashes}
            print(MARK + json.dumps(figures), flush=True)


if __name__ == "__main__":
    with friendly_errors():
        main()
