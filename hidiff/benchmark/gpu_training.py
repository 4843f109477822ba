"""Items of `hidiff gpu-check` about trainings: the same again, resumed, together, in bf16."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import hidiff
from hidiff.benchmark.gpu_setting import Row, Setting, attempt, deterministic, free
from hidiff.benchmark.precisions import WINDOW, compare, train
from hidiff.benchmark.ranks import MARK
from hidiff.cost.timing import measure
from hidiff.engine.trainer import Trainer
from hidiff.errors import Interrupted
from hidiff.models import build_model
from hidiff.models.precision import precision
from hidiff.options import Precision, load_options

ROOT = Path(hidiff.__file__).resolve().parent.parent

CURVES = 0.02
"""Mean relative difference of loss curves up to which a precision trains as float32 does, unless
rounding alone (the control) makes a third of the difference."""


def determinism(setting: Setting) -> Iterator[Row]:
    """A step's gradient twice, by PyTorch's usual and by its deterministic algorithms."""
    sizes, device = setting.sizes, setting.device
    torch.manual_seed(0)
    model = build_model(load_options(sizes.stage2).sections).to(device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(0)
    shape = (2, sizes.batch_size, 3, sizes.patch_size, sizes.patch_size)
    lq, gt = torch.rand(*shape, generator=generator).to(device)
    draws = model.draw(sizes.batch_size, generator)

    def gradient() -> Sequence[Tensor]:
        return torch.autograd.grad(sum(model(lq, gt, **draws).values()), trained)

    usual: dict[str, Sequence[Tensor]] = {}
    names: tuple[Precision, ...] = ("tf32", "bf16")
    chosen = [name for name in names if name in sizes.precisions]
    for name, wanted in itertools.product(chosen, (False, True)):

        def twice(name: Precision = name, wanted: bool = wanted) -> Row:
            with (
                precision(model, name),
                deterministic(wanted),
                warnings.catch_warnings(record=True) as told,
            ):
                warnings.simplefilter("always")
                found = [gradient() for _ in range(2)]
                seconds = min(measure(gradient, device) for _ in range(2))
            same = all(map(torch.equal, *found))
            start = usual.setdefault(name, found[0])
            lost = sum(float((a - b).square().sum()) for a, b in zip(start, found[0], strict=True))
            size = sum(float(a.square().sum()) for a in start)
            without = {str(w.message).split(" ")[0] for w in told if "determinis" in str(w.message)}
            return {
                "step [ms]": 1e3 * seconds,
                "same again": same,
                "difference to the usual ones": (lost / size) ** 0.5,
                "without a deterministic form": ", ".join(sorted(without)),
            } | ({"ok": same} if wanted and not without else {})

        algorithms = "deterministic" if wanted else "usual"
        yield attempt({"precision": name, "algorithms": algorithms}, twice)


def resuming(setting: Setting) -> Iterator[Row]:
    """A training that was stopped and resumed against one that was not, bit by bit."""
    for wanted in (False, True):

        def try_it(wanted: bool = wanted) -> Row:
            with deterministic(wanted):
                whole, again = (_weights(setting, f"{run}_{wanted}") for run in ("whole", "again"))
                resumed = _weights(setting, f"resumed_{wanted}", setting.sizes.steps // 2)
            repeatable = all(map(torch.equal, whole, again))
            same = all(map(torch.equal, whole, resumed))
            # Where two runs differ without a stop there is nothing that resuming could repeat.
            verdict = {"ok": same} if repeatable else {}
            return {"repeatable": repeatable, "resumed the same": same} | verdict

        yield attempt({"algorithms": "deterministic" if wanted else "usual"}, try_it)


def _weights(setting: Setting, name: str, stop: int | None = None) -> list[Tensor]:
    """The weights after a small training, which is stopped after a step and resumed."""
    options = setting.training(f"{name}_S1", "val:val_freq=~", file=setting.sizes.small)
    trainer = Trainer(options, setting.processes)
    if stop is not None:
        train_step = trainer.train_step

        def stopped(step: int) -> None:
            train_step(step)
            if step == stop:
                trainer.stop.received = "SIGTERM"

        trainer.train_step = stopped  # type: ignore[method-assign]  # of this trainer only
        try:
            trainer.run()
        except Interrupted:
            trainer = Trainer(options, setting.processes, auto_resume=True)
            assert trainer.state.step == stop, trainer.state.step
    trainer.run()
    return [tensor.cpu() for tensor in trainer.model.state_dict().values()]


def ranks(setting: Setting) -> Iterator[Row]:
    """Processes that exchange their gradients: the same weights in each of them?"""
    gpus = torch.cuda.device_count() if setting.device.type == "cuda" else 0
    counts = [setting.sizes.processes] if not gpus else [1, gpus]
    for count in dict.fromkeys(counts):
        backend = "nccl" if gpus else "gloo"
        place = {"backend": backend, "processes": count}
        yield attempt(place, partial(_launched, setting, count))


def launch(
    folder: Path, *arguments: str, timeout: float, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` in a folder, with these variables beside its own."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        cwd=folder,
        timeout=timeout,
        capture_output=True,
        text=True,
    )


def _launched(setting: Setting, count: int) -> Row:
    started = time.perf_counter()
    name = f"ranks_{count}_S1"
    changes = ("val:val_freq=~", "train:reference_world_size=~", "dist_params:timeout=60")
    overrides = setting.overrides(name, *changes)
    run = launch(
        setting.folder,
        *("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"),
        *("-m", "hidiff.benchmark.ranks", setting.sizes.small, *overrides),
        timeout=setting.seconds,
        # Where this package is not installed, the other folder does not have it.
        PYTHONPATH=os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    )
    lines = [line for line in run.stdout.splitlines() if line.startswith(MARK)]
    if run.returncode or not lines:
        told = [line for line in run.stderr.splitlines() if "rror" in line] or [run.stderr[-200:]]
        raise RuntimeError(f"torchrun, exit code {run.returncode}: {told[0]}")
    figures = json.loads(lines[0].removeprefix(MARK))
    same = len(set(figures["weights"])) == 1 and len(figures["weights"]) == count
    return {
        "sums right": figures["exchanged"],
        "same weights": same,
        "seconds, start included": time.perf_counter() - started,
        "ok": figures["exchanged"] and same,
    }


def curves(setting: Setting) -> Iterator[Row]:
    """Trainings in fp32 and bf16, and the control: fp32 from weights that hardly differ."""
    runs: dict[str, Precision] = {"fp32": "fp32", "bf16": "bf16", "control": "fp32"}
    steps = _steps_that_fit(setting, len(runs))
    results = {}
    for label, name in runs.items():
        options = setting.training(
            f"curves_{label}_S1",
            *(f"train:precision={name}", f"val:precision={name}"),
            *(f"train:total_iter={steps}", f"val:val_freq={steps}"),
        )
        results[label] = train(options, setting.processes, perturbed=label == "control")
        free()
    result = compare(results)
    means = {
        label: sum(map(abs, values)) / len(values)
        for label, values in result["loss_differences"].items()
    }
    for label, mean in means.items():
        limit = max(CURVES, 3 * means["control"])
        yield {
            "against fp32": label,
            "steps": steps,
            "window [steps]": min(WINDOW, steps),
            "mean difference": mean,
            "largest difference": max(map(abs, result["loss_differences"][label])),
            **{f"{key} [dB]": value for key, value in result["score_differences"][label].items()},
        } | ({} if label == "control" else {"limit": limit, "ok": mean <= limit})


def _steps_that_fit(setting: Setting, runs: int) -> int:
    """Steps of each of so many trainings in the item's share of the time."""
    most = setting.sizes.most_steps
    started = time.perf_counter()
    options = setting.training("curves_probe_S1", "val:val_freq=~", "train:precision=fp32")
    trainer = Trainer(options, setting.processes)
    built = time.perf_counter()
    trainer.run()
    each = trainer.reporter.speed.seconds(0)
    # Each run is built, has first steps and a validation, which may take as long as building.
    spent = time.perf_counter() - started
    left = setting.seconds - spent - runs * 2 * (built - started)
    return max(setting.sizes.steps // 2, min(most, int(0.8 * left / runs / each)))
