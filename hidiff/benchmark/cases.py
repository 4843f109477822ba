"""Measure how fast training, restoring, scoring and loading are, against the plain way.

    python scripts/benchmark.py restore    -opt options/test/GoPro.yml --size 720 1280 --device cuda
    python scripts/benchmark.py train-step -opt options/train/GoPro_S2.yml --device cuda
    python scripts/benchmark.py evaluate   -opt options/test/GoPro.yml --device cuda
    python scripts/benchmark.py data       -opt options/train/GoPro_S1.yml --cache datasets/cache

restore, train-step and evaluate compare ways of computing with the plain formulation of the papers
(tests/plain_formulation.py) in eager float32, data compares reading just a phase's batch with the
release's way: reading `batch_size_per_gpu` crops of `gt_size` and keeping the phase's. All ways of
a comparison run in turn in one process on the same input; medians and their ratio count.

A way is a precision with what is switched on beside it: fp32, tf32, bf16, +compile, +checkpoint1
(activation checkpointing of level 1; +checkpoint1234 of all). With 'plain+' before it, it is
computed as the papers write it. --force_yml kernels=eager measures without the Triton kernels.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import random
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from plain_formulation import plain  # noqa: E402
from torch.utils.data import Dataset  # noqa: E402

from hidiff.data import (  # noqa: E402
    BatchPlan,
    PhaseBatchSampler,
    build_dataset,
    training_batches,
)
from hidiff.data.transfer import to_device  # noqa: E402
from hidiff.benchmark.timing import (  # noqa: E402
    alternate,
    bytes_for_backward,
    comparison,
    copy_rate,
    machine_name,
    matmul_rate,
)
from hidiff.benchmark.table import table, write_table  # noqa: E402
from hidiff.models.compilation import compile_blocks  # noqa: E402
from hidiff.engine.distributed import Processes  # noqa: E402
from hidiff.engine.evaluator import build_test_scorer, evaluate  # noqa: E402
from hidiff.benchmark.roofline import Work, restoring, training_step  # noqa: E402
from hidiff.engine.optim import GRAD_CLIP_NORM, build_optimizer, clip_gradients  # noqa: E402
from hidiff.models.precision import precision  # noqa: E402
from hidiff.engine.versions import library_versions  # noqa: E402
from hidiff.errors import UserError, friendly_errors  # noqa: E402
from hidiff.models import DeblurModel, build_model  # noqa: E402
from hidiff.models.base import SIDE_MULTIPLE  # noqa: E402
from hidiff.options import Options, Phase, load_options  # noqa: E402

BASELINE = "plain+fp32"
DEFAULT_WAYS = {"cpu": ("fp32",), "cuda": ("plain+tf32", "tf32", "bf16", "bf16+compile")}


@dataclass(frozen=True)
class Way:
    """One way of computing; `precision` is that of `hidiff.models.precision`."""

    name: str
    precision: str
    plain: bool = False
    compile: bool = False
    checkpoint: tuple[int, ...] = ()

    @classmethod
    def parse(cls, name: str) -> Way:
        """From 'bf16+compile'.

        Raises:
            UserError: there is no such way.
        """
        match = re.fullmatch(
            r"(plain\+)?(fp32|tf32|bf16)(\+compile)?(?:\+checkpoint([1-4]+))?", name
        )
        if match is None:
            raise UserError(
                f"--ways {name}: give one of fp32, tf32, bf16, with plain+ before it, or +compile "
                "or +checkpoint and levels after it, for example bf16+compile+checkpoint12"
            )
        plain, precision, compiled, levels = match.groups()
        return cls(name, precision, bool(plain), bool(compiled), tuple(map(int, levels or "")))

    def prepare(self, model: DeblurModel) -> DeblurModel:
        """A copy of the model that computes in this way."""
        model = copy.deepcopy(model)
        model.net_g.recompute_levels(self.checkpoint)
        if self.compile:
            compile_blocks(model, f"--ways {self.name}")
        return model

    def wrap(self, model: DeblurModel, work: Callable[[], Any]) -> Callable[[], Any]:
        """The work, done in this way with the model of `prepare`."""

        def call() -> Any:
            with ExitStack() as stack:
                stack.enter_context(precision(model, self.precision))
                if self.plain:
                    stack.enter_context(plain())
                return work()

        return call


class Machine:
    """The device, and its speed at what cannot be avoided: matrix products and copying."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.copy_rate = copy_rate(device)
        self._matmul_rates: dict[str, float] = {}

    def floor(self, work: Work, way: Way) -> dict[str, float]:
        """See `Work.floor`; for the way's precision."""
        if way.precision not in self._matmul_rates:
            dtype = torch.bfloat16 if way.precision == "bf16" else torch.float32
            tf32 = torch.backends.cuda.matmul.allow_tf32
            torch.backends.cuda.matmul.allow_tf32 = way.precision == "tf32"
            self._matmul_rates[way.precision] = matmul_rate(self.device, dtype)
            torch.backends.cuda.matmul.allow_tf32 = tf32
        element_bytes = 2 if way.precision == "bf16" else 4
        return work.floor(self._matmul_rates[way.precision], self.copy_rate, element_bytes)

    def rates(self) -> dict[str, float]:
        """What was measured, for the report."""
        return {"copy": self.copy_rate, "matmul": dict(self._matmul_rates)}


def _phases(options: Options, chosen: Sequence[int] | None) -> dict[int, Phase]:
    """The phases of these numbers, or all."""
    train, data = options.for_training()
    phases = dict(enumerate(data.phases(train.total_iter), start=1))
    for number in chosen or ():
        if number not in phases:
            raise UserError(f"--phase {number}: the option file has phases 1 to {len(phases)}")
    return {number: phases[number] for number in chosen or phases}


def _model(options: Options, device: torch.device) -> DeblurModel:
    torch.manual_seed(options.manual_seed)
    model = build_model(options.sections).to(device)
    model.net_g.use_kernels(options.kernels)
    return model


def restore(options: Options, args: argparse.Namespace, machine: Machine) -> list[dict[str, Any]]:
    """Restore one image of random pixels."""
    model = _model(options, args.device).eval()
    image = torch.rand(1, 3, *args.size, device=args.device)
    noise = None
    if (shape := model.noise_shape(1)) is not None:
        noise = torch.randn(shape, device=args.device)
    padded = (side + -side % SIDE_MULTIPLE for side in args.size)
    work = restoring(options.sections, *padded)

    def prepare(way: Way) -> Callable[[], Any]:
        own = way.prepare(model)
        return way.wrap(own, lambda: own.restore(image, image, noise=noise))

    timings = alternate(
        {way.name: prepare(way) for way in args.ways}, repeats=args.repeats, device=args.device
    )
    ways = comparison(timings, BASELINE)
    for way in args.ways:
        ways[way.name]["floor"] = machine.floor(work, way)
    return [{"case": f"{args.size[0]}×{args.size[1]}", "ways": ways}]


def train_step(
    options: Options, args: argparse.Namespace, machine: Machine
) -> list[dict[str, Any]]:
    """Training steps on random pixels, with the batch and patch size of each phase."""
    train, _ = options.for_training()
    model = _model(options, args.device).train()
    models = {way.name: way.prepare(model) for way in args.ways}
    optimizers = {n: build_optimizer(train.optim_total, m) for n, m in models.items()}
    cases = []
    for number, phase in _phases(options, args.phase).items():
        batch_size, patch_size = args.batch or phase.batch_size, args.patch or phase.patch_size
        lq, gt = torch.rand(2, batch_size, 3, patch_size, patch_size, device=args.device)

        def prepare(way: Way, lq: torch.Tensor = lq, gt: torch.Tensor = gt) -> Callable[[], Any]:
            own, optimizer = models[way.name], optimizers[way.name]

            def step() -> None:
                sum(own(lq, gt).values()).backward()
                clip_gradients(own, GRAD_CLIP_NORM)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            return way.wrap(own, step)

        timings = alternate(
            {way.name: prepare(way) for way in args.ways}, repeats=args.repeats, device=args.device
        )
        ways = comparison(timings, BASELINE)
        work = training_step(options.sections, batch_size, patch_size)
        for way in args.ways:
            own = models[way.name]
            forward = way.wrap(own, lambda own=own, lq=lq, gt=gt: own(lq, gt))
            ways[way.name] |= {
                "floor": machine.floor(work, way),
                "kept_for_backward": bytes_for_backward(forward, own),
            }
        cases.append({"case": f"phase {number}, {batch_size}×{patch_size}²", "ways": ways})
    return cases


def _as_released(
    dataset: Dataset, indices: Sequence[int], phase: Phase, crop_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read, convert, crop and augment a pair for each index; keep the phase's part of them."""
    crops = {"lq": [], "gt": []}
    for index in indices:
        pair = dataset[index]
        height, width = pair["lq"].shape[1:]
        top, left = random.randint(0, height - crop_size), random.randint(0, width - crop_size)
        turns, flip = random.randint(0, 3), random.random() < 0.5
        for side, chosen in crops.items():
            crop = pair[side][:, top : top + crop_size, left : left + crop_size]
            crop = torch.rot90(crop, turns, (1, 2))
            chosen.append((crop.flip(1) if flip else crop).contiguous())
    kept = random.sample(range(len(indices)), phase.batch_size)
    start = random.randint(0, crop_size - phase.patch_size)
    part = slice(start, start + phase.patch_size)
    lq, gt = (torch.stack(chosen)[kept][:, :, part, part] for chosen in crops.values())
    return lq, gt


def data(options: Options, args: argparse.Namespace, machine: Machine) -> list[dict[str, Any]]:
    """Load the batches of each phase, with one core."""
    section = options.for_training()[1]
    datasets = {"ours": build_dataset(section)}
    if args.cache:
        source = {**section.source, "cache": str(args.cache)}
        datasets["ours, cache"] = build_dataset(dataclasses.replace(section, source=source))
    plain_dataset = datasets["ours"]
    torch.set_num_threads(1)
    random.seed(options.manual_seed)
    cases = []
    for number, phase in _phases(options, args.phase).items():

        def ours(dataset: Dataset, phase: Phase = phase) -> Callable[[], Any]:
            batches = training_batches(
                dataset,
                PhaseBatchSampler(
                    size=len(dataset),
                    plan=BatchPlan([phase], 1),
                    rank=0,
                    seed=options.manual_seed,
                    crop_size=section.gt_size,
                    total_iter=1 + args.repeats,  # one call to warm up
                ),
                num_workers=0,
            )
            return lambda: to_device(next(batches), args.device, torch.float32)

        def as_released(phase: Phase = phase) -> None:
            indices = random.choices(range(len(plain_dataset)), k=section.batch_size_per_gpu)
            for pixels in _as_released(plain_dataset, indices, phase, section.gt_size):
                pixels.to(args.device)

        work = {"read all": as_released, **{name: ours(d) for name, d in datasets.items()}}
        # The cache compares each frame with its hash once, which is not what an epoch costs later.
        for index in range(len(plain_dataset)) if args.cache else ():
            datasets["ours, cache"][index]
        ways = comparison(
            alternate(work, repeats=args.repeats, device=args.device), baseline="read all"
        )
        for way in ways.values():
            way["rate"] = f"{phase.batch_size / way['median']:.1f} crops/s"
        case = f"phase {number}, {phase.batch_size}×{phase.patch_size}²"
        cases.append({"case": case, "ways": ways})
    return cases


def score(options: Options, args: argparse.Namespace, machine: Machine) -> list[dict[str, Any]]:
    """Read, restore, score and write the first images of the first test set, as test.py does.

    The plain way does one step after the other, the others read, score and write in threads.
    """
    model = _model(options, args.device).eval()
    section = next(iter(options.test_sets().values()))
    dataset = build_dataset(section)
    dataset.pairs = dataset.pairs[: args.images]
    protocol, scorer = build_test_scorer(options.val, section.name)
    processes = Processes(0, 1, args.device)

    with TemporaryDirectory() as folder:

        def prepare(way: Way) -> Callable[[], Any]:
            own = way.prepare(model)

            def work() -> None:
                evaluate(
                    *(own, dataset, scorer, processes),
                    seed=options.manual_seed,
                    label=way.name,
                    score_blurry=True,
                    picture_path=lambda name: Path(folder, f"{name}.png"),
                    num_workers=0 if way.plain else options.val.num_workers,
                )

            return way.wrap(own, work)

        timings = alternate(
            {way.name: prepare(way) for way in args.ways}, repeats=args.repeats, device=args.device
        )
    ways = comparison(timings, BASELINE)
    for way in ways.values():
        way["rate"] = f"{len(dataset) / way['median']:.2f} images/s"
    return [{"case": f"{len(dataset)} images, {protocol}", "ways": ways}]


COMMANDS = {"restore": restore, "train-step": train_step, "evaluate": score, "data": data}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("-opt", type=Path, required=True, metavar="FILE", help="option file")
    parser.add_argument(
        "--force_yml", nargs="+", default=[], metavar="OPTION=VALUE", help="as for train.py"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1, for example")
    parser.add_argument("--ways", nargs="+", metavar="WAY", help="compared with the plain way")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("H", "W"))
    parser.add_argument(
        "--phase", type=int, nargs="+", metavar="N", help="of progressive training; default: all"
    )
    parser.add_argument("--batch", type=int, help="batch size in place of the phase's")
    parser.add_argument("--patch", type=int, help="patch size in place of the phase's")
    parser.add_argument("--images", type=int, default=20, help="of the test set, for evaluate")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="of decoded frames, for data")
    parser.add_argument("--repeats", type=int, default=5, help="measured calls of each way")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this page")
    return parser.parse_args()


def _check(args: argparse.Namespace) -> None:
    """Refuse what cannot be measured; the device becomes torch's."""
    try:
        args.device = torch.device(args.device)
    except RuntimeError:
        raise UserError(f"--device {args.device}: use cpu, cuda or cuda:N") from None
    gpus = torch.cuda.device_count()
    if args.device.type == "cuda" and (args.device.index or 0) >= gpus:
        found = f"{gpus} GPUs" if gpus else "no GPU"
        raise UserError(f"--device {args.device}: PyTorch sees {found} here")
    for name in ("batch", "patch", "repeats", "images"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    if min(args.size) < 1:
        raise UserError("--size: give height and width in pixels, for example 720 1280")
    if args.patch and args.patch % SIDE_MULTIPLE:
        raise UserError(f"--patch {args.patch}: must be a multiple of {SIDE_MULTIPLE}")


def main() -> None:
    args = _arguments()
    with friendly_errors():
        _check(args)
        torch.backends.cudnn.benchmark = True
        names = args.ways or DEFAULT_WAYS.get(args.device.type, ("fp32",))
        args.ways = [Way.parse(name) for name in dict.fromkeys((BASELINE, *names))]
        machine = Machine(args.device)
        cases = COMMANDS[args.command](load_options(args.opt, args.force_yml), args, machine)
        written = ["--write", str(args.write)]
        words = [word for word in sys.argv[1:] if word not in written]
        report = {
            "command": " ".join(["python scripts/benchmark.py", *words]),
            "machine": machine_name(args.device),
            "repeats": args.repeats,
            "rates": machine.rates(),
            "cases": cases,
            "versions": library_versions(),
        }
        if args.write:
            patch = f", patch {args.patch}" if args.patch else ""
            name = f"{args.command}{patch} on {args.device.type}"
            write_table(args.write, name, table(report))
        print(json.dumps(report, indent=2) if args.json else table(report))


if __name__ == "__main__":
    main()
