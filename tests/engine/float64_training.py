"""Train stage 2 for three steps in float64; run by test_processes.py, alone or by torchrun.

float64_training.py DATA OUTPUT_NAME REFERENCE_WORLD_SIZE
"""

import os
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent))
from small_data import train_options

from hidiff.engine.trainer import Trainer
from hidiff.options import parse_options
from hidiff.utils.distributed import start_processes


def main() -> None:
    data, name = Path(sys.argv[1]), sys.argv[2]
    torch.set_default_dtype(torch.float64)
    content = train_options(data, 2, total_iter=3, reference_world_size=int(sys.argv[3]))
    content["datasets"]["train"] |= {"iters": [2, 1], "gt_size": 16, "gt_sizes": [8, 16]}
    if "RANK" in os.environ:
        # Several processes with micro-batches train what one process trains without.
        content["train"]["micro_batch"] = 1
    content["datasets"].pop("val")
    content |= {"name": name, "val": {}}
    # Weights of stage 1: any will do.
    content["path"] = {f"pretrain_network_{n}": f"{name}_{n}.pth" for n in ("g", "le")}
    options = parse_options(content)
    launcher = "pytorch" if "RANK" in os.environ else "none"
    with start_processes(launcher, **options.launch_arguments) as processes:
        from hidiff import build_model

        torch.manual_seed(1)
        model = build_model(content)
        if processes.is_main:
            for n in ("g", "le"):
                params = model.networks()[f"net_{n}"].state_dict()
                torch.save({"params": params}, f"{name}_{n}.pth")
        processes.barrier()
        trainer = Trainer(options, processes)
        seen = []
        accumulate = trainer.gradients.accumulate

        def record(step, source):
            losses, images = accumulate(step, source)
            # By slot: process r's batch m is slot m·W + r.
            parts = processes.gather(images)
            size = len(images) // trainer.plan.accumulation
            seen.append(
                [
                    image
                    for m in range(trainer.plan.accumulation)
                    for part in parts
                    for image in part[m * size : (m + 1) * size]
                ]
            )
            return losses, images

        trainer.gradients.accumulate = record
        first = {key: value.clone() for key, value in trainer.model.state_dict().items()}
        trainer.run()
        if processes.is_main:
            weights = trainer.model.state_dict()
            torch.save({"images": seen, "weights": weights, "first": first}, f"{name}.pth")


if __name__ == "__main__":
    main()
