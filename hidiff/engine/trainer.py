"""The training loop."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hidiff.data import BatchPlan, PhaseBatchSampler, build_dataset, training_batches
from hidiff.data.transfer import DeviceBatches
from hidiff.engine import checkpoint
from hidiff.engine.distributed import Processes, no_sync
from hidiff.engine.ema import WeightAverage
from hidiff.engine.experiment import (
    create_experiment,
    training_warnings,
)
from hidiff.engine.logger import MetricsWriter, start_logging
from hidiff.engine.lr_schedule import build_lr_schedule
from hidiff.engine.optim import (
    GRAD_CLIP_NORM,
    build_optimizer,
    clip_gradients,
    load_optimizer,
    set_lr,
)
from hidiff.engine.resume import compare_options, options_hash
from hidiff.engine.signals import GRACE, StopRequest
from hidiff.engine.validation import Validator
from hidiff.errors import Interrupted, UserError
from hidiff.files import set_aside
from hidiff.lock import hold
from hidiff.models import DeblurModel, build_model
from hidiff.models.compilation import compile_blocks
from hidiff.models.memory import is_out_of_memory
from hidiff.models.precision import precision
from hidiff.options import Options
from hidiff.weights.experiment import Experiment
from hidiff.weights.pretrained import changed_since_start, load_pretrained

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

        # Every phase has one image size, so the search for the fastest kernels pays.
        torch.backends.cudnn.benchmark = True
        # Every process initialises the same weights; the wrapper would only copy them anyway.
        torch.manual_seed(options.manual_seed)
        self.model = build_model(options.sections).to(processes.device).train()
        self.model.net_g.use_kernels(options.kernels)
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
        self.experiment = Experiment(options.name)
        lock_notices = hold(self.experiment.folder, processes)
        self.validator = Validator(
            options,
            {
                section.name: build_dataset(section)
                for key, section in options.datasets.items()
                if key.startswith("val")
            },
            processes,
            self.experiment.visualization,
        )
        for name, dataset in (("training set", self.dataset), *self.validator.datasets.items()):
            processes.require_same(f"images ({name})", dataset.fingerprint())

        self.step = 0
        self.saved_step = 0
        self.bad_steps = 0
        self.validated = True
        """Whether the validation after `step`, where there is to be one, is done."""
        self.notices = [
            *options.notices,
            *lock_notices,
            *training_warnings(options, self.model, processes),
        ]
        for dataset in (self.dataset, *self.validator.datasets.values()):
            self.notices += dataset.notices
        self.started_from: dict[str, dict[str, Any]] = {}
        state = self._saved_state(auto_resume)
        if state is None:
            notices, self.started_from = load_pretrained(self.model, options, training=True)
            self.notices += notices
        decay = self.train_options.ema_decay
        self.average = WeightAverage(self.model, decay) if decay else None
        if state is not None:
            self._restore(state)
        self.model.net_g.recompute_levels(self.train_options.activation_checkpointing)
        if self.train_options.compile:
            compile_blocks(self.model, "train.compile")
        self.wrapped = processes.wrap(self.model, accumulates=self.plan.accumulation > 1)
        batches = training_batches(
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
            pin_memory=processes.device.type == "cuda" and data_options.pin_memory is not False,
            prefetch=data_options.num_prefetch_queue,
            skip_bad=self.train_options.on_bad_image == "skip",
            timeout=data_options.timeout,
            while_waiting=self._end_wait,
        )
        dtype = next(self.model.parameters()).dtype
        self.batches = DeviceBatches(
            batches, processes.device, dtype, self.dataset.normalization
        )
        log_file = None
        with processes.main_first():
            if processes.is_main:
                if state is None:
                    self._set_aside_unsaved(auto_resume)
                log_file = create_experiment(self.experiment, options, resuming=state is not None)
                checkpoint.clear_partial(self.experiment.models, self.experiment.states)
                if state is not None:
                    # Later states are another branch's; --auto_resume must not return to it.
                    self.notices += checkpoint.set_aside_newer(self.experiment.states, self.step)
        self.log_file = processes.gather(log_file)[0]
        self.log = start_logging(is_main=processes.is_main, file=self.log_file)
        self._log_start()

    def run(self) -> None:
        """Train from the step after the last one to `train.total_iter`.

        Raises:
            UserError: an image cannot be used, or loss or gradient is not finite in too many steps
                in a row.
            Interrupted: a signal (`StopRequest`) or the end of torchrun has stopped the run after
                a step or between two images of a validation; its state is saved.
        """
        with ExitStack() as stack:
            stack.enter_context(self._failures_in_log())
            stack.enter_context(self._memory_errors())
            stack.enter_context(self.processes.lost_processes())
            stack.callback(self.batches.close)
            grace = GRACE if self.processes.world_size > 1 else None
            self.stop = stack.enter_context(StopRequest(grace))
            stack.enter_context(precision(self.model, self.train_options.precision))
            tensorboard = self.experiment.tensorboard if self._uses_tensorboard else None
            self.writer = MetricsWriter(tensorboard, self.step + 1)
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
            # A run that was stopped in a validation goes on with it.
            stopping = not self._validate()
            while not stopping and self.step < self.total_iter:
                try:
                    self._train_step(self.step + 1)
                except Interrupted:  # before the step had its data
                    stopping = True
                else:
                    stopping = self.processes.any(self._asked_to_stop())
                    val_freq = self.options.val.val_freq
                    self.validated = not (val_freq and self._due(val_freq))
                if stopping:
                    self.stop.heeded.set()
                if stopping or self._due(self.options.logger.save_checkpoint_freq):
                    self._save(last=stopping)
                stopping = stopping or not self._validate()
            complete = self.step == self.total_iter and self.validated
        if complete:
            self.log.info("training is complete: %s", self.experiment.models)
            return
        message = f"stopped after step {self.step}: resumable with --auto_resume"
        self.log.info(message)
        # SIGUSR1 is the one signal that torchrun does not hand on.
        self.processes.leave(agent_knows=self.stop.received not in (None, "SIGUSR1"))
        raise Interrupted(message)

    def _train_step(self, step: int) -> None:
        """The step with all its micro-batches, and what is said about it."""
        set_lr(self.optimizer, self.lr(step))
        losses, images = self._accumulate(step)
        norm = clip_gradients(self.model, self._max_norm).item()
        self.step = step
        if self._all_finite(losses, norm):
            self._update()
        else:
            self._skip(losses, images)
        self._report(losses, norm)

    def _asked_to_stop(self) -> bool:
        """Whether this process is; a training whose torchrun is gone cannot be told any more."""
        return self.stop.received is not None or self.processes.orphaned

    def _end_wait(self) -> None:
        """Not with others, which are in the step already and wait for this process.

        Raises:
            Interrupted: this process is to stop, and need not wait for its loader any longer.
        """
        if self.processes.world_size == 1 and self._asked_to_stop():
            raise Interrupted("stopped while waiting for data")

    def _validate(self) -> bool:
        """Score the model where that is still to be done; False where a stop came before the end.

        The checkpoint of the step is written before, because a validation may take longer than
        schedulers wait, and its training state again after it, for the best scores.
        """
        if self.validated:
            return True
        self.validated = self.validator.run(
            self._to_validate, self.step, self.writer, self._asked_to_stop
        )
        saved = self.saved_step == self.step
        if self.validated and saved:
            self._save(weights=False)
        elif not self.validated and not saved:
            self._save(last=True)
        return self.validated

    @contextmanager
    def _failures_in_log(self) -> Iterator[None]:
        """Write to the log file why this process fails, whichever of them it is."""
        try:
            yield
        except Exception as error:
            reason = str(error) if isinstance(error, UserError) else traceback.format_exc()
            where = f"process {self.processes.rank} of {self.processes.world_size}"
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            # On a full disk the reason must still reach the console.
            with suppress(OSError), self.log_file.open("a", encoding="utf-8") as file:
                file.write(f"{now} ERROR: {where} failed: {reason}\n")
            raise

    def _all_finite(self, losses: dict[str, Tensor], norm: float) -> bool:
        """Whether loss and gradient are finite on every process.

        A loss can be infinite where its gradient is not, and each process has its own.
        """
        values = (norm, *(loss.item() for loss in losses.values()))
        return not self.processes.any(not all(map(math.isfinite, values)))

    @contextmanager
    def _memory_errors(self) -> Iterator[None]:
        """Say at which patch size the memory is used up, and what needs less.

        Raises:
            UserError: in place of an error that means that memory is used up.
        """
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            index = self.plan.phase_index(min(self.step + 1, self.total_iter))
            phase = self.plan.phases[index]
            raise UserError(
                f"the memory of {self.processes.device} is used up in phase {index + 1}, after "
                f"step {self.step}: {phase.batch_size} patches of {phase.patch_size}² a process. "
                "Lower datasets.train.mini_batch_sizes (batch_size_per_gpu) or gt_sizes there, or "
                "set train.activation_checkpointing: [1, 2, 3, 4]"
            ) from None

    def _update(self) -> None:
        """Take the step that the gradients ask for."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.model)
        self.bad_steps = 0

    def _skip(self, losses: dict[str, Tensor], images: list[str]) -> None:
        """Leave the weights as they are after a loss or gradient that is not finite.

        Raises:
            UserError: it was the last of `train.max_bad_steps` in a row.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.bad_steps += 1
        values = ", ".join(f"{name} {loss.item():g}" for name, loss in losses.items())
        everyone = [name for part in self.processes.gather(images) for name in part]
        self.log.warning(
            "step %d: loss or gradient is not finite (%s), so the step is skipped; images: %s",
            *(self.step, values, ", ".join(everyone)),
        )
        if self.bad_steps >= self.train_options.max_bad_steps:
            raise UserError(
                f"loss or gradient was not finite in {self.bad_steps} steps in a row, the last "
                f"with the images {', '.join(everyone)}; the last good checkpoint is in "
                f"{self.experiment.states}. Lower the learning rate, or look at these images "
                "(scripts/check_data.py)"
            )

    @property
    def _to_validate(self) -> DeblurModel:
        return self.average.model if self.average and self.options.val.use_ema else self.model

    def _accumulate(self, step: int) -> tuple[dict[str, Tensor], list[str]]:
        """Forward and backward of the step's micro-batches; their mean losses and images."""
        total: dict[str, Tensor] = {}
        images: list[str] = []
        for micro in range(self.plan.accumulation):
            batch = next(self.batches)
            images += batch["name"]
            for notice in batch["notices"]:
                self.log.warning("step %d: %s", step, notice)
            lq, gt = batch["lq"], batch["gt"]
            # A model draws from torch's generator what it needs beside the noise (time steps).
            seed = self._slot_rng(MODEL_STREAM, step, micro).integers(2**63)
            torch.manual_seed(int(seed))
            last = micro == self.plan.accumulation - 1
            with no_sync(self.wrapped, skip=not last):
                losses = self.wrapped(lq, gt, noise=self._noise(step, micro, lq))
                (sum(losses.values()) / self.plan.accumulation).backward()
            self.batches.prefetch()
            for name, loss in losses.items():
                part = loss.detach() / self.plan.accumulation
                total[name] = total[name] + part if name in total else part
        return total, images

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

    def _report(self, losses: dict[str, Tensor], grad_norm: float) -> None:
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

    def _save(self, *, last: bool = False, weights: bool = True) -> None:
        """Weights of the trained networks, and the state to resume from.

        Where they cannot be written (a full disk), the run goes on and tries again next time.

        Raises:
            UserError: they cannot be written and this was the last time.
        """
        problem = None
        if self.processes.is_main:
            try:
                if weights:
                    checkpoint.save_networks(
                        self.model.trained_networks(),
                        self.experiment.models,
                        self.step,
                        self.total_iter,
                        self.average.networks() if self.average else None,
                    )
                checkpoint.save_state(self._state(), self.experiment.states, self.step)
                what = "weights and training state" if weights else "the scores of the validation"
                self.log.info("step %d: saved %s", self.step, what)
            except OSError as error:
                problem = f"step {self.step}: the checkpoint could not be written ({error})"
                self.log.error(
                    "%s; training goes on and tries again at the next one; earlier checkpoints are "
                    "intact",
                    problem,
                )
        problem = self.processes.gather(problem)[0]
        if problem is None:
            self.saved_step = self.step
        elif last or self.step == self.total_iter:
            raise UserError(
                f"{problem}, and the run ends here; make room on the disk and go on from the "
                f"newest state in {self.experiment.states} with --auto_resume"
            )

    def _state(self) -> dict[str, Any]:
        """Everything to go on from. Random numbers and the order of the data follow from the step.

        All networks are in it, the frozen ones too, so that the state alone is enough.
        """
        state = {
            "step": self.step,
            "networks": {n: net.state_dict() for n, net in self.model.networks().items()},
            "optimizer": self.optimizer.state_dict(),
            "best": self.validator.best,
            "validated": self.validated,
            "started_from": self.started_from,
            "bad_steps": self.bad_steps,
            "slots": self.plan.slots,
            "training_pairs": len(self.dataset),
            "options": dict(self.options.sections),
            "options_hash": options_hash(self.options.sections),
        }
        if self.average:
            state["average"] = {n: net.state_dict() for n, net in self.average.networks().items()}
        return state

    def _saved_state(self, auto_resume: bool) -> dict[str, Any] | None:
        """The state to go on from, None when there is none.

        The main process chooses it, and the others read the file that it names: listings of one
        folder on several machines may differ.

        Raises:
            UserError: there are only damaged ones, or the processes have read different files.
        """
        state = None
        with self.processes.main_first():
            if self.processes.is_main:
                state = self._chosen_state(auto_resume)
        chosen = self.processes.gather(state and (state.path, state.where))[0]
        if chosen is None:
            return None
        found = ""
        if not self.processes.is_main:
            try:
                state = checkpoint.load_state(*chosen)
            except UserError as error:
                found = str(error)
        if state is not None:
            found = f"{state.path} of step {state.content['step']}, SHA-256 {state.sha256}"
        self.processes.require_same("training state", found)
        return state.content

    def _chosen_state(self, auto_resume: bool) -> checkpoint.SavedState | None:
        if auto_resume:
            # Before path.resume_state: a job that is started again must not start over.
            state, notices = checkpoint.newest_state(self.experiment.states)
            self.notices += notices
            if state is not None:
                return state
        path = self.options.path.resume_state
        return None if path is None else checkpoint.load_state(path, "path.resume_state")

    def _set_aside_unsaved(self, auto_resume: bool) -> None:
        """Make room where an earlier attempt ended before its first training state.

        Without `auto_resume` the weights that it may have saved are enough to keep the name.
        """
        folder = self.experiment.folder
        if not folder.exists() or any(self.experiment.states.glob("*.state")):
            return
        if auto_resume or not any(self.experiment.models.glob("*.pth")):
            archived = set_aside(folder)
            self.notices.append(f"{folder} had no training state to resume; it is now {archived}")

    def _restore(self, state: dict[str, Any]) -> None:
        """Take over a saved state.

        Raises:
            UserError: going on from it would not give the result of a run that was not stopped.
        """
        where = f"the training state of step {state['step']}"
        self.notices += compare_options(state["options"], self.options.sections, where)
        for key, now, what in (
            ("slots", self.plan.slots, "batches of the phase's size in a global batch"),
            ("training_pairs", len(self.dataset), "training pairs"),
        ):
            if state[key] != now:
                raise UserError(
                    f"{where} was saved with {state[key]} {what}, this run has {now}; going on "
                    "would give another result. Resume with the same data, and set "
                    "train.reference_world_size for another number of processes"
                )
        try:
            for name, network in self.model.networks().items():
                network.load_state_dict(state["networks"][name])
            if self.average:
                for name, network in self.average.networks().items():
                    network.load_state_dict(state["average"][name])
            load_optimizer(self.optimizer, state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"{where} belongs to another configuration ({str(error).splitlines()[0]}); resume "
                "with the option file that the experiment was started with"
            ) from None
        self.step, self.bad_steps = state["step"], state["bad_steps"]
        self.saved_step = self.step
        self.validated = state.get("validated", True)
        self.started_from = state.get("started_from", {})
        if self.processes.is_main:
            self.notices += changed_since_start(self.started_from)
        self.validator.best = state["best"]
        self.notices.append(f"resumed after step {self.step}")

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
