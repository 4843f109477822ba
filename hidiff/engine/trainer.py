"""The training loop."""

from __future__ import annotations

import copy
import logging
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from hidiff.data import BatchPlan
from hidiff.data.transfer import DeviceBatches
from hidiff.engine import checkpoint
from hidiff.engine.experiment import prepare_folder, refuse_another, training_warnings
from hidiff.engine.gradients import Gradients, MicroBatches, memory_advice
from hidiff.engine.logger import (
    MetricsWriter,
    Reporter,
    failures_logged,
    start_logging,
    start_wandb,
)
from hidiff.engine.optim import (
    GRAD_CLIP_NORM,
    build_optimizer,
    clip_gradients,
    learning_rate,
    set_lr,
    update_average,
)
from hidiff.engine.training_data import TrainingData
from hidiff.engine.validation import Validator
from hidiff.models import DeblurModel, build_model
from hidiff.models.compilation import compile_blocks
from hidiff.models.precision import precision
from hidiff.options import Options
from hidiff.utils.distributed import Processes
from hidiff.utils.errors import Interrupted, UserError, memory_errors
from hidiff.utils.files import lock_folder
from hidiff.utils.memory import keep_freed_memory
from hidiff.utils.signals import GRACE, StopRequest
from hidiff.weights.experiment import Experiment
from hidiff.weights.start import NotTrainedYet, changed_since_start, load_pretrained

LOG = logging.getLogger("hidiff")


class Trainer:
    """A training run: model, optimiser, data, and the place in the schedule.

    Building it checks all options and data and loads all weights; nothing is written before that
    has succeeded.

    Args:
        options: the option file.
        processes: this process and the others.
        auto_resume: continue from the newest state of the experiment, if there is one.
        allow_changed_options: continue with options that give another result.
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
        allow_changed_options: bool = False,
        dry: bool = False,
    ) -> None:
        self.options, self.processes, self.dry = options, processes, dry
        self.train_options, section = options.for_training()
        self.total_iter = self.train_options.total_iter
        phases = section.phases(self.total_iter)
        self.plan = BatchPlan(phases, processes.world_size, self.train_options.reference_world_size)
        self.experiment = Experiment(options.name)
        self.stop = StopRequest(GRACE if processes.world_size > 1 else None)

        self.model = self._build_model()
        optimizer = build_optimizer(self.train_options.optim_total, self.model)
        self.lr = learning_rate(options.sections)
        self.data = TrainingData(options, self.plan, processes, dry=dry)
        self.dataset = self.data.training
        notices = [*options.notices]
        if not dry:
            notices += lock_folder(self.experiment.folder, processes)
        self.validator = Validator(
            options, self.data.validation, processes, self.experiment.visualization
        )
        notices += training_warnings(options, self.model, processes)
        notices += self.data.notices

        self.micro_batches = MicroBatches(self.train_options.micro_batch, self.plan)
        saved, found = checkpoint.choose_state(
            self.experiment.states, options.path.resume_state, processes, auto_resume=auto_resume
        )
        notices += found
        found, started_from = self._starting_weights() if saved is None else ([], {})
        notices += found
        sizes = list(self.dataset.shares.sizes)
        self.state = checkpoint.TrainingState(
            self.model,
            optimizer,
            copy.deepcopy(self.model).eval() if self.train_options.ema_decay else None,
            self.micro_batches,
            options.sections,
            slots=self.plan.slots,
            training_pairs=sizes if len(sizes) > 1 else sizes[0],
            started_from=started_from,
        )
        if saved is not None:
            notices += self.state.load_state_dict(
                saved.content, allow_changed_options=allow_changed_options
            )
            if processes.is_main:
                notices += changed_since_start(self.state.started_from)
        self.saved_step = self.state.step
        self.model.recompute_levels(self.train_options.activation_checkpointing)
        if self.train_options.compile:
            compile_blocks(self.model, "train.compile")
        accumulates = self.plan.accumulation > 1 or self.micro_batches.enabled
        wrapped = processes.wrap(self.model, accumulates=accumulates)
        self.gradients = Gradients(
            self.model, wrapped, self.plan, self.micro_batches, processes, options.manual_seed
        )
        self.batches = self.load(self.state.step + 1)

        step = None if saved is None else self.state.step
        log_file = None
        with processes.main_first():
            if processes.is_main:
                refuse_another(self.experiment, step=step, auto_resume=auto_resume)
                if not dry:
                    log_file, found = prepare_folder(self.experiment, options, step=step)
                    notices += found
        self.log_file = processes.gather(log_file)[0]
        start_logging(is_main=processes.is_main, file=self.log_file)
        for line in (*notices, *self._description()):
            LOG.info(line)
        print_freq = None if dry else options.logger.print_freq
        self.reporter = Reporter(
            options,
            self.plan,
            processes,
            self._writer(),
            step=self.state.step,
            print_freq=print_freq,
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

    def _starting_weights(self) -> tuple[list[str], dict[str, Any]]:
        """Load the weights that the options name; notices, and each network's file."""
        try:
            return load_pretrained(self.model, self.options, training=True)
        except NotTrainedYet as error:
            if not self.dry:
                raise
            return [f"{error}; until then, these networks are tried with other weights"], {}

    def _writer(self) -> MetricsWriter:
        """Of the curves; only the first process writes them."""
        if not self.processes.is_main or self.dry:
            return MetricsWriter(None)
        start_wandb(self.options)
        folder = self.experiment.tensorboard if self.options.logger.use_tb_logger else None
        return MetricsWriter(folder, self.state.step + 1)

    def load(self, first_step: int) -> DeviceBatches:
        """The batches of the steps from this one on."""
        dtype = next(self.model.parameters()).dtype
        return self.data.batches(first_step, dtype, self._end_wait)

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
            UserError: an image cannot be used, a checkpoint cannot be written, or loss or gradient
                is not finite in too many steps in a row.
            Interrupted: a signal (`StopRequest`) or the end of torchrun has stopped the run after
                a step or between two images of a validation; its state is saved.
        """
        with ExitStack() as stack:
            stack.enter_context(failures_logged(self.log_file, self.processes))
            stack.enter_context(self.processes.lost_processes())
            stack.callback(self.batches.close)
            stack.enter_context(self.stop)
            stack.enter_context(precision(self.model, self.train_options.precision))
            stack.enter_context(self.reporter.bar)
            stack.callback(self.reporter.writer.close)
            complete = self._loop()
        if complete:
            LOG.info("training is complete: %s", self.experiment.models)
            return
        # SIGUSR1 is the one signal that torchrun does not hand on.
        self.processes.leave(agent_knows=self.stop.received not in (None, "SIGUSR1"))
        raise Interrupted(f"stopped after step {self.state.step}: resumable with --auto_resume")

    def _loop(self) -> bool:
        """All steps, validations and checkpoints; False where the run was stopped."""
        state = self.state
        # A run that was stopped in a validation goes on with it.
        stopping = not self._validate()
        while not stopping and state.step < self.total_iter:
            try:
                stopping = self.train_step(state.step + 1)
            except Interrupted:  # before the step had its data
                stopping = True
            else:
                val_freq = self.options.val.val_freq
                state.validated = not (val_freq and self._due(val_freq))
            if stopping:
                self.stop.acknowledged.set()
            if stopping or self._due(self.options.logger.save_checkpoint_freq):
                self._save()
            stopping = stopping or not self._validate()
        return not stopping

    def train_step(self, step: int) -> bool:
        """Take one step; whether a process was asked to stop meanwhile.

        Raises:
            UserError: memory is used up, an image cannot be used, or the step is the last of
                `train.max_bad_steps` whose loss or gradient is not finite.
        """
        lr = self.lr(step)
        set_lr(self.state.optimizer, lr)
        with memory_errors(*memory_advice(self.train_options, self.plan, self.micro_batches, step)):
            losses, images = self.gradients.accumulate(step, self.batches)
            limit = GRAD_CLIP_NORM if self.train_options.use_grad_clip else None
            norm = clip_gradients(self.model, limit)
            means, grad_norm, finite, stopping = self._agree(losses, norm)
            self.state.step = step
            if finite:
                self._update()
            else:
                self._skip(means, images)
        self.reporter.step(step, lr, means, grad_norm, self.batches.waited)
        return stopping

    def _agree(
        self, losses: dict[str, Tensor], norm: Tensor
    ) -> tuple[dict[str, float], float, bool, bool]:
        """What all processes must know of a step, in one exchange and one wait for the GPU.

        Returns:
            The mean losses and gradient norm, whether all of them are finite on every process, and
            whether a process was asked to stop.
        """
        # A loss can be infinite where its gradient is not, and each process has its own.
        own = torch.stack([*losses.values(), norm])
        asked = float(self.stop.received is not None or self.processes.orphaned)
        flags = torch.stack([(~own.isfinite()).any().to(own), own.new_full((), asked)])
        *sums, bad, stops = self.processes.sums(torch.cat([own, flags]))
        *means, grad_norm = (value / self.processes.world_size for value in sums)
        return dict(zip(losses, means, strict=True)), grad_norm, bad == 0, stops > 0

    def _update(self) -> None:
        """Take the step that the gradients ask for."""
        self.state.optimizer.step()
        self.state.optimizer.zero_grad(set_to_none=True)
        if self.state.average and self.train_options.ema_decay:
            update_average(self.state.average, self.model, self.train_options.ema_decay)
        self.state.bad_steps = 0

    def _skip(self, losses: dict[str, float], images: list[str]) -> None:
        """Leave the weights as they are after a loss or gradient that is not finite.

        Raises:
            UserError: it was the last of `train.max_bad_steps` in a row.
        """
        self.state.optimizer.zero_grad(set_to_none=True)
        self.state.bad_steps += 1
        values = ", ".join(f"{name} {loss:g}" for name, loss in losses.items())
        everyone = [name for part in self.processes.gather(images) for name in part]
        LOG.warning(
            "step %d: loss or gradient is not finite (%s), so the step is skipped; images: %s",
            *(self.state.step, values, ", ".join(everyone)),
        )
        if self.state.bad_steps >= self.train_options.max_bad_steps:
            last_good = self.state.step - self.state.bad_steps
            raise UserError(
                f"loss or gradient was not finite in the {self.state.bad_steps} steps after step "
                f"{last_good}, the last with the images {', '.join(everyone)}; the newest "
                f"checkpoint is that of step {self.saved_step}. Look at these images (hidiff check "
                "--data), or set a lower learning rate and go on with --auto_resume "
                "--allow_changed_options, from an older state with path.resume_state"
            )

    def _due(self, frequency: int) -> bool:
        return self.state.step % frequency == 0 or self.state.step == self.total_iter

    def _end_wait(self) -> None:
        """Not with others, which are in the step already and wait for this process.

        Raises:
            Interrupted: this process is to stop, and need not wait for its loader any longer.
        """
        if self.processes.world_size == 1 and self.stop.received is not None:
            raise Interrupted("stopped while waiting for data")

    def _asked_to_stop(self) -> bool:
        """Whether this process is; a training whose torchrun is gone cannot be told any more."""
        return self.stop.received is not None or self.processes.orphaned

    def _validate(self) -> bool:
        """Score the model where that is still to be done; False where a stop came before the end.

        The checkpoint of the step is written before, because a validation may take longer than
        schedulers wait, and its training state again after it, for the best scores.
        """
        state = self.state
        if state.validated:
            return True
        use_average = state.average is not None and self.options.val.use_ema
        state.validated = self.validator.run(
            state.average if use_average and state.average else self.model,
            state.step,
            state.best,
            self.reporter.writer,
            self._asked_to_stop,
        )
        saved = self.saved_step == state.step
        if state.validated and saved:
            self._save(model=False)
        elif not state.validated and not saved:
            self._save()
        return state.validated

    def _save(self, *, model: bool = True) -> None:
        """Write the model file and the state to resume from.

        Nothing is written in a streak of skipped steps: the weights that gave them may be beyond
        help, and a later start would take them for the newest good ones.

        Raises:
            UserError: they cannot be written; earlier ones are whole.
        """
        step = self.state.step
        if self.state.bad_steps and step == self.total_iter:
            raise UserError(
                f"the training ends with {self.state.bad_steps} skipped steps, so its weights are "
                f"not saved; the newest checkpoint is that of step {self.saved_step}. Set a lower "
                "learning rate and go on with --auto_resume --allow_changed_options"
            )
        if self.state.bad_steps:
            LOG.warning(
                "step %d: not saved, because the last %d steps were skipped; the newest checkpoint "
                "is that of step %d",
                *(step, self.state.bad_steps, self.saved_step),
            )
            return
        with self.processes.main_first():
            if self.processes.is_main:
                checkpoint.save(self.state, self.experiment, self.options, model=model)
                what = "model and training state" if model else "the scores of the validation"
                LOG.info("step %d: saved %s", step, what)
                if model and len(self.dataset.sets) > 1:
                    samples = self.plan.samples_before(step + 1)
                    LOG.info("samples so far: %s", self.dataset.counted(samples))
        self.saved_step = step
