"""Train every network of Table 4 for two steps in float64, alone or by torchrun.

baseline_training.py DATA OUTPUT
"""

import os
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent))
from baseline_options import BASELINES, baseline_options

from hidiff.engine.trainer import Trainer
from hidiff.options import parse_options
from hidiff.utils.distributed import start_processes


def main() -> None:
    data, output = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_default_dtype(torch.float64)
    output.mkdir(exist_ok=True)
    os.chdir(output)
    contents = [baseline_options(data, n, reference_world_size=2) for n in BASELINES]
    launcher = "pytorch" if "RANK" in os.environ else "none"
    arguments = parse_options(contents[0]).launch_arguments
    with start_processes(launcher, **arguments) as processes:
        for content in sorted(contents, key=lambda content: content["name"]):
            trainer = Trainer(parse_options(content), processes)
            trainer.run()
            processes.barrier()
            if processes.is_main:
                torch.save(trainer.model.state_dict(), f"{content['name']}.pth")


if __name__ == "__main__":
    main()
