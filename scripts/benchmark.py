"""Measure how fast training, restoring and loading are, against the plain way, in one process.

    python scripts/benchmark.py restore    -opt options/test/GoPro.yml --size 256 256
    python scripts/benchmark.py train-step -opt options/train/GoPro_S2.yml --phase 1
    python scripts/benchmark.py data       -opt options/train/GoPro_S1.yml --phase 6

restore and train-step compare this project's formulation of the networks with the plain one of the
papers (tests/plain_formulation.py), data compares reading just a phase's batch with the release's
way: reading `batch_size_per_gpu` crops of `gt_size` and keeping some. The two ways alternate; the
table shows medians and their ratio.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from plain_formulation import plain  # noqa: E402

from hidiff.data import BatchPlan, CropRequest, PhaseBatchSampler, build_dataset  # noqa: E402
from hidiff.engine.benchmark import alternate, comparison  # noqa: E402
from hidiff.engine.optim import build_optimizer, clip_gradients  # noqa: E402
from hidiff.engine.versions import library_versions  # noqa: E402
from hidiff.errors import UserError, friendly_errors  # noqa: E402
from hidiff.models import DeblurModel, build_model  # noqa: E402
from hidiff.options import Options, load_options  # noqa: E402


def _phase(options: Options, number: int) -> Any:
    train, data = options.for_training()
    phases = data.phases(train.total_iter)
    if not 1 <= number <= len(phases):
        raise UserError(f"--phase {number}: the option file has phases 1 to {len(phases)}")
    return phases[number - 1]


def _model(options: Options, device: torch.device) -> DeblurModel:
    torch.manual_seed(options.manual_seed)
    return build_model(options.sections).to(device)


def restore(options: Options, args: argparse.Namespace) -> dict[str, Any]:
    """Restore one image of random pixels."""
    model = _model(options, args.device).eval()
    image = torch.rand(1, 3, *args.size, device=args.device)
    noise = None
    if (shape := model.noise_shape(1)) is not None:
        noise = torch.randn(shape, device=args.device)

    def fast() -> None:
        model.restore(image, image, noise=noise)

    def slow() -> None:
        with plain():
            model.restore(image, image, noise=noise)

    timings = alternate({"plain": slow, "fast": fast}, repeats=args.repeats, device=args.device)
    return {"size": [1, 3, *args.size], **comparison(timings, "plain")}


def train_step(options: Options, args: argparse.Namespace) -> dict[str, Any]:
    """One training step on random pixels, with the batch and patch size of a phase."""
    phase = _phase(options, args.phase)
    batch_size, patch_size = args.batch or phase.batch_size, args.patch or phase.patch_size
    model = _model(options, args.device).train()
    optimizer = build_optimizer(options.train.optim_total, model)
    lq, gt = torch.rand(2, batch_size, 3, patch_size, patch_size, device=args.device)

    def fast() -> None:
        sum(model(lq, gt).values()).backward()
        clip_gradients(model, 0.01)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def slow() -> None:
        with plain():
            fast()

    timings = alternate({"plain": slow, "fast": fast}, repeats=args.repeats, device=args.device)
    return {
        "size": [batch_size, 3, patch_size, patch_size],
        **comparison(timings, "plain"),
    }


def data(options: Options, args: argparse.Namespace) -> dict[str, Any]:
    """Read the crops of one step of a phase, in this process."""
    phase = _phase(options, args.phase)
    section = options.for_training()[1]
    dataset = build_dataset(section)
    sampler = PhaseBatchSampler(
        size=len(dataset),
        plan=BatchPlan([phase], 1),
        rank=0,
        seed=options.manual_seed,
        crop_size=section.gt_size,
        total_iter=args.repeats + 1,
    )
    batches = list(sampler)
    turn = iter(range(len(batches)))

    def fast() -> None:
        for request in batches[next(turn)]:
            dataset[request]

    def slow() -> None:
        for index in range(section.batch_size_per_gpu):
            dataset[CropRequest(index % len(dataset), section.gt_size, section.gt_size, (1,))]

    timings = alternate({"read all": slow, "fast": fast}, repeats=args.repeats)
    return {
        "batch": phase.batch_size,
        "patch": phase.patch_size,
        "crops_per_second": phase.batch_size / timings["fast"].median,
        **comparison(timings, "read all"),
    }


COMMANDS = {"restore": restore, "train-step": train_step, "data": data}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("-opt", type=Path, required=True, metavar="FILE", help="option file")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("H", "W"))
    parser.add_argument("--phase", type=int, default=1, help="of progressive training, from 1")
    parser.add_argument("--batch", type=int, help="batch size in place of the phase's")
    parser.add_argument("--patch", type=int, help="patch size in place of the phase's")
    parser.add_argument("--repeats", type=int, default=5, help="measured calls of each way")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    with friendly_errors():
        if args.device.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"--device {args.device}: PyTorch sees no GPU here")
        result = COMMANDS[args.command](load_options(args.opt), args)
    gpu = args.device.type == "cuda"
    machine = torch.cuda.get_device_name(args.device) if gpu else platform.processor()
    result |= {"machine": machine, "threads": torch.get_num_threads()}
    if args.json:
        print(json.dumps({**result, "versions": library_versions()}, indent=2))
        return
    for name, timing in result.items():
        if isinstance(timing, dict):
            print(
                f"{name:10} {timing['median']:.4f} s ({timing['smallest']:.4f} to "
                f"{timing['largest']:.4f}), {timing['times_faster']:.2f} times as fast"
            )
        else:
            print(f"{name}: {timing}")


if __name__ == "__main__":
    main()
