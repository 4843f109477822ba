"""The training loop."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hidiff.data import BatchPlan, PhaseBatchSampler, build_dataset, training_batches
from hidiff.engine import checkpoint
from hidiff.engine.distributed import Processes, no_sync
from hidiff.engine.evaluator import Triptych, build_metrics, evaluate, mean_metrics
from hidiff.engine.experiment import Experiment, load_pretrained
from hidiff.engine.logger import MetricsWriter, start_logging
from hidiff.engine.lr_schedule import build_lr_schedule
from hidiff.engine.optim import GRAD_CLIP_NORM, build_optimizer, clip_gradients, set_lr
from hidiff.errors import UserError
from hidiff.models import build_model
from hidiff.options import Options

PICTURES_PER_VALIDATION = 3
"""Validation images shown in TensorBoard."""

NOISE_STREAM, MODEL_STREAM = 2, 3
"""Keep the random numbers of noise and model apart (0 and 1 are the order and the crops)."""

BAR_INTERVAL = 0.5
"""Seconds between updates of the numbers in the progress bar; each waits for the GPU."""


class Trainer:
    """Everything a training run holds: model, optimiser, data, place in the schedule.

    Building it checks all options and data and loads all weights; nothing is written before that
    has succeeded.

    Args:
        options: the option file.
        processes: this process and the others.
        auto_resume: continue from the newest state of the experiment, if there is one.

    Raises:
        UserError: anything in the options, the data or the files that a person must mend.
    """

    def __init__(self, options: Options, processes: Processes, *, auto_resume: bool = False):
        self.options = options
        self.processes = processes
        self.train_options, data_options = options.for_training()
        self.total_iter = self.train_options.total_iter
        phases = data_options.phases(self.total_iter)
        self.plan = BatchPlan(phases, processes.world_size, self.train_options.reference_world_size)
        self.scorer = build_metrics(options.val.metrics)

        # Every process initialises the same weights; the wrapper would only copy them anyway.
        torch.manual_seed(options.manual_seed)
        self.model = build_model(options.sections).to(processes.device).train()
        self.optimizer = build_optimizer(self.train_options.optim_total, self.model)
        self.lr = build_lr_schedule(
            self.train_options.scheduler,
            base_lr=self.optimizer.defaults["lr"],
            total_iter=self.total_iter,
            warmup_iter=self.train_options.warmup_iter,
        )
        self.dataset = build_dataset(data_options)
        if not self.dataset.has_gt:
            raise UserError(f"{data_options.where}.dataroot_gt: training needs the sharp images")
        self.validation_sets = {
            section.name: build_dataset(section)
            for key, section in options.datasets.items()
            if key.startswith("val")
        }

        self.experiment = Experiment(options.name)
        self.step = 0
        self.best: dict[str, Any] = {}
        self.notices = list(options.notices)
        resumed = self._resume(auto_resume)
        if not resumed:
            self.notices += load_pretrained(self.model, options, training=True)
        self.wrapped = processes.wrap(self.model)
        self.batches = training_batches(
            self.dataset,
            PhaseBatchSampler(
                size=len(self.dataset),
                plan=self.plan,
                rank=processes.rank,
                seed=options.manual_seed,
                crop_size=data_options.gt_size,
                total_iter=self.total_iter,
                first_step=self.step + 1,
                enlarge_ratio=data_options.dataset_enlarge_ratio,
            ),
            num_workers=data_options.num_worker_per_gpu,
            pin_memory=processes.device.type == "cuda",
        )
        log_file = None
        with processes.main_first():
            if processes.is_main:
                log_file = self.experiment.create(options.file, resuming=resumed)
        self.log = start_logging(is_main=processes.is_main, file=log_file)
        self._log_start()

    def run(self) -> None:
        """Train from the step after the last one to `train.total_iter`."""
        with ExitStack() as stack:
            tensorboard = self.experiment.tensorboard if self._uses_tensorboard else None
            self.writer = stack.enter_context(MetricsWriter(tensorboard, self.step + 1))
            self.bar = stack.enter_context(
                tqdm(
                    total=self.total_iter,
                    initial=self.step,
                    desc=self.options.name,
                    # None: no bar where the output is no terminal; the log lines go there too.
                    disable=None if self.processes.is_main else True,
                    dynamic_ncols=True,
                )
            )
            for step in range(self.step + 1, self.total_iter + 1):
                set_lr(self.optimizer, self.lr(step))
                losses = self._accumulate(step)
                norm = clip_gradients(self.model, self._max_norm)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                self.step = step
                self._report(losses, norm)
                if self._due(self.options.logger.save_checkpoint_freq):
                    self._save()
                if self.options.val.val_freq and self._due(self.options.val.val_freq):
                    self._validate()
        self.log.info("training is complete: %s", self.experiment.models)

    def _accumulate(self, step: int) -> dict[str, Tensor]:
        """Forward and backward of the step's micro-batches; their mean losses."""
        total: dict[str, Tensor] = {}
        for micro in range(self.plan.accumulation):
            batch = next(self.batches)
            lq, gt = (
                batch[side].to(self.processes.device, non_blocking=True) for side in ("lq", "gt")
            )
            # A model draws from torch's generator what it needs beside the noise (time steps).
            seed = self._slot_rng(MODEL_STREAM, step, micro).integers(2**63)
            torch.manual_seed(int(seed))
            last = micro == self.plan.accumulation - 1
            with no_sync(self.wrapped, skip=not last):
                losses = self.wrapped(lq, gt, noise=self._noise(step, micro, lq))
                (sum(losses.values()) / self.plan.accumulation).backward()
            for name, loss in losses.items():
                part = loss.detach() / self.plan.accumulation
                total[name] = total[name] + part if name in total else part
        return total

    def _slot_rng(self, stream: int, step: int, micro: int) -> np.random.Generator:
        """Random numbers that follow from seed, step and slot, so that resuming repeats them."""
        slot = micro * self.processes.world_size + self.processes.rank
        return np.random.default_rng((self.options.manual_seed, stream, step, slot))

    def _noise(self, step: int, micro: int, lq: Tensor) -> Tensor | None:
        """The slot's noise, None for a model that needs none."""
        shape = self.model.noise_shape(lq.shape[0])
        if shape is None:
            return None
        rng = self._slot_rng(NOISE_STREAM, step, micro)
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(lq)

    @property
    def _max_norm(self) -> float | None:
        return GRAD_CLIP_NORM if self.train_options.use_grad_clip else None

    @property
    def _uses_tensorboard(self) -> bool:
        return self.processes.is_main and self.options.logger.use_tb_logger

    def _due(self, frequency: int) -> bool:
        return self.step % frequency == 0 or self.step == self.total_iter

    def _report(self, losses: dict[str, Tensor], norm: Tensor) -> None:
        """Progress bar now and then; log line and TensorBoard every `print_freq` steps."""
        self.bar.update()
        now = time.monotonic()
        log_due = self.step % self.options.logger.print_freq == 0 or self.step == self.total_iter
        bar_due = self.processes.is_main and now - getattr(self, "_bar_time", 0.0) > BAR_INTERVAL
        if not (log_due or bar_due):
            return
        lr = self.lr(self.step)
        phase = self.plan.phase_index(self.step) + 1
        if bar_due:
            self._bar_time = now
            numbers = {name: f"{loss.item():.4f}" for name, loss in losses.items()}
            self.bar.set_postfix(
                {**numbers, "lr": f"{lr:.2e}", "phase": f"{phase}/{len(self.plan.phases)}"}
            )
        if not log_due:
            return
        means = self.processes.mean(torch.stack(list(losses.values()))).tolist()
        values = dict(zip(losses, means, strict=True))
        grad_norm = norm.item()
        self.log.info(
            "step %d/%d, phase %d, lr %.4e, %s, gradient norm %.4g",
            self.step,
            self.total_iter,
            phase,
            lr,
            ", ".join(f"{name} {value:.6f}" for name, value in values.items()),
            grad_norm,
        )
        scalars = {f"losses/{name}": value for name, value in values.items()}
        scalars |= {"train/lr": lr, "train/grad_norm": grad_norm, "train/phase": phase}
        self.writer.scalars(scalars, self.step)

    def _save(self) -> None:
        """Weights of the trained networks, and the state to resume from."""
        with self.processes.main_first():
            if self.processes.is_main:
                networks = self.model.trained_networks()
                checkpoint.save_networks(networks, self.experiment.models, self.step)
                # All networks, the frozen ones too: a state alone is enough to go on.
                checkpoint.save_state(
                    {
                        "step": self.step,
                        "networks": {
                            n: net.state_dict() for n, net in self.model.networks().items()
                        },
                        "optimizer": self.optimizer.state_dict(),
                        "best": self.best,
                    },
                    self.experiment.states,
                    self.step,
                )
                self.log.info("step %d: saved weights and training state", self.step)

    def _resume(self, auto_resume: bool) -> bool:
        """Take over a saved state; False when there is none to take."""
        path = self.options.path.resume_state
        if path is not None:
            state = checkpoint.load_state(path, "path.resume_state")
        elif auto_resume:
            state, notices = checkpoint.newest_state(self.experiment.states)
            self.notices += notices
            if state is None:
                return False
        else:
            return False
        networks = self.model.networks()
        if set(networks) != set(state["networks"]):
            raise UserError(
                f"the training state of {self.experiment.folder} holds "
                f"{', '.join(state['networks'])}, this option file trains {', '.join(networks)}; "
                "resume with the option file that the experiment was started with"
            )
        try:
            for name, network in networks.items():
                network.load_state_dict(state["networks"][name])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"the training state of {self.experiment.folder} belongs to another configuration "
                f"({str(error).splitlines()[0]}); resume with the option file that the experiment "
                "was started with"
            ) from None
        self.step, self.best = state["step"], state["best"]
        self.notices.append(f"resumed after step {self.step}")
        return True

    def _validate(self) -> None:
        """Score the validation sets; log, best value, TensorBoard, pictures."""
        options = self.options
        label = "val (upper bound: sees the sharp image)" if self.model.restores_from_gt else "val"
        for name, dataset in self.validation_sets.items():
            shown: dict[str, np.ndarray] = {}

            def keep(index: int, image: str, pictures: Triptych, shown: dict = shown) -> None:
                if index < PICTURES_PER_VALIDATION:
                    shown[image] = np.concatenate(pictures, axis=1)

            results = evaluate(
                self.model,
                dataset,
                self.scorer,
                self.processes,
                seed=options.manual_seed,
                label=f"{label} {name}",
                self_ensemble=options.val.selfensemble_testing,
                picture_path=self._picture_path if options.val.save_img else None,
                on_triptych=keep,
            )
            for failed in (result for result in results if result.error):
                self.log.warning("%s: %s", name, failed.error)
            means = mean_metrics(results)
            for metric, value in means.items():
                best = self.best.setdefault(f"{name}/{metric}", {"value": value, "step": self.step})
                if value > best["value"]:
                    best.update(value=value, step=self.step)
                self.log.info(
                    "step %d: %s %s, %s %.4f (best %.4f at step %d)",
                    *(self.step, label, name, metric, value, best["value"], best["step"]),
                )
            kind = "upper_bound" if self.model.restores_from_gt else "metrics"
            self.writer.scalars({f"{kind}/{name}/{m}": v for m, v in means.items()}, self.step)
            for part in self.processes.gather(shown):
                for image, picture in part.items():
                    self.writer.picture(f"{name}/{image}", picture, self.step)
            self.writer.flush()

    def _picture_path(self, image: str) -> Path:
        return self.experiment.visualization / image / f"{image}_{self.step}.png"

    def _log_start(self) -> None:
        """What a reader of the log must know about the run."""
        for notice in self.notices:
            self.log.info(notice)
        counts = ", ".join(
            f"{name} {sum(p.numel() for p in net.parameters()) / 1e6:.3f} M"
            for name, net in self.model.networks().items()
        )
        self.log.info("%s: %s on %s", self.options.model_type, counts, self.processes.device)
        self.log.info("training set: %d pairs", len(self.dataset))
        for line in self.plan.describe():
            self.log.info(line)
