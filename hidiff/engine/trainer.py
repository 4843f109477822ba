"""The training loop."""

from __future__ import annotations

import copy
import math
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from hidiff.archs.strips import block_dtype
from hidiff.data import (
    BatchPlan,
    PhaseBatchSampler,
    build_dataset,
    build_training_set,
    training_batches,
)
from hidiff.data.transfer import DeviceBatches
from hidiff.engine import checkpoint
from hidiff.engine.experiment import prepare_folder, refuse_another, training_warnings
from hidiff.engine.gradients import Gradients
from hidiff.engine.logger import (
    MetricsWriter,
    Reporter,
    failures_logged,
    start_logging,
    start_wandb,
)
from hidiff.engine.micro_batch import MicroBatches
from hidiff.engine.optim import (
    GRAD_CLIP_NORM,
    build_lr_schedule,
    build_optimizer,
    clip_gradients,
    set_lr,
    update_average,
)
from hidiff.engine.speed import Speed
from hidiff.engine.validation import Validator
from hidiff.models import DeblurModel, build_model
from hidiff.models.compilation import compile_blocks
from hidiff.models.precision import precision
from hidiff.options import Options
from hidiff.utils.distributed import GRACE, Processes, StopRequest
from hidiff.utils.errors import Interrupted, UserError, memory_errors
from hidiff.utils.files import hold
from hidiff.utils.memory import keep_freed_memory
from hidiff.weights.experiment import Experiment, training_facts
from hidiff.weights.start import changed_since_start, load_pretrained


class Trainer:
    """Everything a training run holds: model, optimiser, data, place in the schedule.

    Building it checks all options and data and loads all weights; nothing is written before that
    has succeeded.

    Args:
        options: the option file.
        processes: this process and the others.
        auto_resume: continue from the newest state of the experiment, if there is one.
        dry: write nothing, for `hidiff.engine.dry_run`.

    Raises:
        UserError: anything in the options, the data or the files that a person must mend.
    """

    def __init__(
        self,
        options: Options,
        processes: Processes,
        *,
        auto_resume: bool = False,
        dry: bool = False,
    ):
        self.options, self.processes = options, processes
        self.train_options, data_options = options.for_training()
        self.total_iter = self.train_options.total_iter
        phases = data_options.phases(self.total_iter)
        self.plan = BatchPlan(phases, processes.world_size, self.train_options.reference_world_size)
        self.experiment = Experiment(options.name)
        self.stop = StopRequest(GRACE if processes.world_size > 1 else None)

        self.model = self._build_model()
        optimizer = build_optimizer(self.train_options.optim_total, self.model)
        self.lr = build_lr_schedule(
            self.train_options.scheduler,
            base_lr=optimizer.defaults["lr"],
            total_iter=self.total_iter,
            warmup_iter=self.train_options.warmup_iter,
        )
        self.dataset = build_training_set(data_options)
        lock_notices = [] if dry else hold(self.experiment.folder, processes)
        sections = [part for key, part in options.datasets.items() if key.startswith("val")]
        self.validator = Validator(
            options,
            {section.name: build_dataset(section) for section in sections},
            processes,
            self.experiment.visualization,
        )
        warnings = training_warnings(options, self.model, processes)
        self.notices = [*options.notices, *lock_notices, *warnings]
        for name, dataset in (("training set", self.dataset), *self.validator.datasets.items()):
            processes.require_same(f"images ({name})", dataset.fingerprint())
            self.notices += dataset.notices

        saved, notices = checkpoint.choose_state(
            self.experiment.states, options.path.resume_state, processes, auto_resume=auto_resume
        )
        self.notices += notices
        started_from: dict[str, Any] = {}
        if saved is None:
            notices, started_from = load_pretrained(self.model, options, training=True)
            self.notices += notices
        sizes = list(self.dataset.shares.sizes)
        self.state = checkpoint.TrainingState(
            self.model,
            optimizer,
            copy.deepcopy(self.model).eval() if self.train_options.ema_decay else None,
            options.sections,
            slots=self.plan.slots,
            training_pairs=sizes if len(sizes) > 1 else sizes[0],
            started_from=started_from,
            facts=training_facts(options),
        )
        if saved is not None:
            self.notices += self.state.restore(saved.content)
            if processes.is_main:
                self.notices += changed_since_start(self.state.started_from)
        self.saved_step = self.state.step
        self.model.recompute_levels(self.train_options.activation_checkpointing)
        if self.train_options.compile:
            compile_blocks(self.model, "train.compile")
        self.micro_batches = MicroBatches(
            self.train_options.micro_batch, self.plan, self.state.micro_batches
        )
        accumulates = self.plan.accumulation > 1 or self.micro_batches.cuts
        self.wrapped = processes.wrap(self.model, accumulates=accumulates)
        self.gradients = Gradients(
            self.model, self.wrapped, self.plan, self.micro_batches, processes, options.manual_seed
        )
        self.batches = self.load(self.state.step + 1)

        log_file = None
        with processes.main_first():
            if processes.is_main:
                step = None if saved is None else self.state.step
                if dry:
                    refuse_another(self.experiment, step=step, auto_resume=auto_resume)
                else:
                    log_file, notices = prepare_folder(
                        self.experiment, options, step=step, auto_resume=auto_resume
                    )
                    self.notices += notices
        self.log_file = processes.gather(log_file)[0]
        self.log = start_logging(is_main=processes.is_main, file=self.log_file)
        for line in (*self.notices, *self._description()):
            self.log.info(line)
        self.reporter = Reporter(
            options.name,
            self.plan,
            processes,
            total_iter=self.total_iter,
            step=self.state.step,
            print_freq=None if dry else options.logger.print_freq,
            writer=self._writer(dry),
            speed=Speed(self.plan, self.total_iter),
            model=self.model,
            dtype=block_dtype(
                torch.bfloat16 if self.train_options.precision == "bf16" else torch.float32,
                processes.device,
            ),
        )

    def _writer(self, dry: bool) -> MetricsWriter:
        """Of the curves; only the first process writes them."""
        wanted = self.processes.is_main and not dry
        tensorboard = wanted and self.options.logger.use_tb_logger
        return MetricsWriter(
            self.experiment.tensorboard if tensorboard else None,
            self.state.step + 1,
            start_wandb(self.options) if wanted else None,
        )

    def _build_model(self) -> DeblurModel:
        if self.processes.device.type == "cpu":
            keep_freed_memory()
        # Every phase has one image size, so the search for the fastest kernels pays.
        torch.backends.cudnn.benchmark = True
        # Every process initialises the same weights; the wrapper would only copy them anyway.
        torch.manual_seed(self.options.manual_seed)
        model = build_model(self.options.sections).to(self.processes.device).train()
        model.use_kernels(self.options.kernels)
        model.strip_rows = self.options.val.strip_rows
        return model

    def load(self, first_step: int) -> DeviceBatches:
        """The batches of the steps from this one on."""
        device, options = self.processes.device, self.options.for_training()[1]
        assert options.gt_size is not None  # the phases have asked for it
        sampler = PhaseBatchSampler(
            size=len(self.dataset),
            shares=self.dataset.shares,
            plan=self.plan,
            rank=self.processes.rank,
            seed=self.options.manual_seed,
            crop_size=options.gt_size,
            total_iter=self.total_iter,
            first_step=first_step,
            enlarge_ratio=options.dataset_enlarge_ratio,
        )
        batches = training_batches(
            self.dataset,
            sampler,
            num_workers=options.num_worker_per_gpu,
            pin_memory=device.type == "cuda" and options.pin_memory is not False,
            prefetch=options.num_prefetch_queue,
            skip_bad=self.train_options.on_bad_image == "skip",
            timeout=options.timeout,
            while_waiting=self._end_wait,
        )
        dtype = next(self.model.parameters()).dtype
        return DeviceBatches(batches, device, dtype, self.dataset.normalization)

    def _description(self) -> list[str]:
        """What is trained on what, for the log."""
        counts = ", ".join(
            f"{name} {sum(p.numel() for p in net.parameters()) / 1e6:.3f} M"
            for name, net in self.model.networks().items()
        )
        return [
            f"{self.options.model_type}: {counts} on {self.processes.device}",
            *self.dataset.describe(self.plan.samples_before(self.total_iter + 1)),
            *self.plan.describe(),
        ]

    def run(self) -> None:
        """Train from the step after the last one to `train.total_iter`.

        Raises:
            UserError: an image cannot be used, or loss or gradient is not finite in too many steps
                in a row.
            Interrupted: a signal (`StopRequest`) or the end of torchrun has stopped the run after
                a step or between two images of a validation; its state is saved.
        """
        state = self.state
        with ExitStack() as stack:
            stack.enter_context(failures_logged(self.log_file, self.processes))
            stack.enter_context(self.processes.lost_processes())
            stack.callback(self.batches.close)
            stack.enter_context(self.stop)
            stack.enter_context(precision(self.model, self.train_options.precision))
            stack.enter_context(self.reporter.bar)
            # A run that was stopped in a validation goes on with it.
            stopping = not self._validate()
            while not stopping and state.step < self.total_iter:
                try:
                    self.train_step(state.step + 1)
                except Interrupted:  # before the step had its data
                    stopping = True
                else:
                    stopping = self.processes.any(self._asked_to_stop())
                    val_freq = self.options.val.val_freq
                    state.validated = not (val_freq and self._due(val_freq))
                if stopping:
                    self.stop.heeded.set()
                if stopping or self._due(self.options.logger.save_checkpoint_freq):
                    self._save(last=stopping)
                stopping = stopping or not self._validate()
            complete = state.step == self.total_iter and state.validated
        if complete:
            self.log.info("training is complete: %s", self.experiment.models)
            return
        message = f"stopped after step {state.step}: resumable with --auto_resume"
        self.log.info(message)
        # SIGUSR1 is the one signal that torchrun does not hand on.
        self.processes.leave(agent_knows=self.stop.received not in (None, "SIGUSR1"))
        raise Interrupted(message)

    def train_step(self, step: int) -> None:
        """The step with all its micro-batches, and what is said about it."""
        index = self.plan.phase_index(step)
        phase = self.plan.phases[index]
        lr = self.lr(step)
        set_lr(self.state.optimizer, lr)
        with (
            self.reporter.speed.step(step, lambda: self.batches.waited),
            memory_errors(
                f"the memory of {self.processes.device} is used up in phase {index + 1}, after "
                f"step {step - 1}: {phase.batch_size} patches of {phase.patch_size}² a process",
                "set train.micro_batch: auto (or a smaller number) and "
                "train.activation_checkpointing: [1, 2, 3, 4], or lower datasets.train.gt_sizes",
            ),
        ):
            if self.micro_batches.size(index) is None:
                self.log.info(self.micro_batches.measure(index, self.model, self.processes))
            losses, images = self._accumulate(step)
            limit = GRAD_CLIP_NORM if self.train_options.use_grad_clip else None
            norm = clip_gradients(self.model, limit).item()
            self.state.step = step
            if self._all_finite(losses, norm):
                self._update()
            else:
                self._skip(losses, images)
        self.reporter.step(step, lr, losses, norm)

    def _accumulate(self, step: int) -> tuple[dict[str, Tensor], list[str]]:
        """The step's gradients, its mean losses and its images; see `hidiff.engine.gradients`."""
        return self.gradients.accumulate(step, self.batches)

    def _all_finite(self, losses: dict[str, Tensor], norm: float) -> bool:
        """Whether loss and gradient are finite on every process.

        A loss can be infinite where its gradient is not, and each process has its own.
        """
        values = (norm, *(loss.item() for loss in losses.values()))
        return not self.processes.any(not all(map(math.isfinite, values)))

    def _update(self) -> None:
        """Take the step that the gradients ask for."""
        self.state.optimizer.step()
        self.state.optimizer.zero_grad(set_to_none=True)
        if self.state.average and self.train_options.ema_decay:
            update_average(self.state.average, self.model, self.train_options.ema_decay)
        self.state.bad_steps = 0

    def _skip(self, losses: dict[str, Tensor], images: list[str]) -> None:
        """Leave the weights as they are after a loss or gradient that is not finite.

        Raises:
            UserError: it was the last of `train.max_bad_steps` in a row.
        """
        self.state.optimizer.zero_grad(set_to_none=True)
        self.state.bad_steps += 1
        values = ", ".join(f"{name} {loss.item():g}" for name, loss in losses.items())
        everyone = [name for part in self.processes.gather(images) for name in part]
        self.log.warning(
            "step %d: loss or gradient is not finite (%s), so the step is skipped; images: %s",
            *(self.state.step, values, ", ".join(everyone)),
        )
        if self.state.bad_steps >= self.train_options.max_bad_steps:
            raise UserError(
                f"loss or gradient was not finite in {self.state.bad_steps} steps in a row, the "
                f"last with the images {', '.join(everyone)}; the last good checkpoint is in "
                f"{self.experiment.states}. Lower the learning rate, or look at these images "
                "(hidiff check)"
            )

    def _due(self, frequency: int) -> bool:
        return self.state.step % frequency == 0 or self.state.step == self.total_iter

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

    @property
    def _to_validate(self) -> DeblurModel:
        return self.state.average if self.state.average and self.options.val.use_ema else self.model

    def _validate(self) -> bool:
        """Score the model where that is still to be done; False where a stop came before the end.

        The checkpoint of the step is written before, because a validation may take longer than
        schedulers wait, and its training state again after it, for the best scores.
        """
        state = self.state
        if state.validated:
            return True
        state.validated = self.validator.run(
            self._to_validate, state.step, state.best, self.reporter.writer, self._asked_to_stop
        )
        saved = self.saved_step == state.step
        if state.validated and saved:
            self._save(weights=False)
        elif not state.validated and not saved:
            self._save(last=True)
        return state.validated

    def _save(self, *, last: bool = False, weights: bool = True) -> None:
        """Weights of the trained networks, and the state to resume from.

        Where they cannot be written (a full disk), the run goes on and tries again next time.

        Raises:
            UserError: they cannot be written and this was the last time.
        """
        step, problem = self.state.step, None
        if self.processes.is_main:
            try:
                checkpoint.save(self.state, self.experiment, self.total_iter, weights=weights)
                what = "weights and training state" if weights else "the scores of the validation"
                self.log.info("step %d: saved %s", step, what)
                if weights and len(self.dataset.sets) > 1:
                    samples = self.plan.samples_before(step + 1)
                    self.log.info("samples so far: %s", self.dataset.counted(samples))
            except OSError as error:
                problem = f"step {step}: the checkpoint could not be written ({error})"
                self.log.error(
                    "%s; training goes on and tries again at the next one; earlier checkpoints are "
                    "intact",
                    problem,
                )
        problem = self.processes.gather(problem)[0]
        if problem is None:
            self.saved_step = step
        elif last or step == self.total_iter:
            raise UserError(
                f"{problem}, and the run ends here; make room on the disk and go on from the "
                f"newest state in {self.experiment.states} with --auto_resume"
            )
