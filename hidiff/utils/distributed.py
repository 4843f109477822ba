"""Processes, devices and signals: the only place that talks to torch.distributed."""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import record as record
from torch.nn.parallel import DistributedDataParallel

from hidiff.utils.errors import UserError

Launcher = Literal["none", "pytorch", "slurm"]

JOIN_LIMIT = 600.0
"""Seconds that the first process waits for the others at the start."""


@dataclass(frozen=True)
class Processes:
    """This process among those that train or test together."""

    rank: int
    world_size: int
    device: torch.device
    cpu_group: Any = None
    """Group for Python values and flags; those need no GPU and must not wait for one."""
    agent: int | None = None
    """Process id of the torchrun that started this process."""
    timeout: float = 1800.0
    """Seconds that a process waits for another."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    @property
    def orphaned(self) -> bool:
        """Whether the torchrun that started this process is gone."""
        return self.agent is not None and os.getppid() != self.agent

    def leave(self, *, agent_knows: bool) -> None:
        """Get ready to exit with a code for "interrupted", together with the others.

        Args:
            agent_knows: torchrun is ending already. Otherwise it is asked to end too, for it would
                start again (`--max-restarts`) what has stopped.
        """
        if self.agent is not None:
            # Torchrun hands the signal on; these processes are about to leave by themselves.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self.barrier()
            if not (agent_knows or self.orphaned) and os.environ["LOCAL_RANK"] == "0":
                os.kill(self.agent, signal.SIGTERM)
        # Who leaves while others still talk to it takes their connection away.
        self.barrier()

    def wrap(self, model: nn.Module, *, accumulates: bool) -> nn.Module:
        """The one data-parallel wrapper around a model; the model itself for one process.

        Args:
            model: on this process's device.
            accumulates: whether `no_sync` will skip backward passes.
        """
        if self.world_size == 1:
            return model
        for parameter in model.parameters():
            if parameter.requires_grad and 1 in parameter.shape:
                parameter.register_hook(partial(_with_strides, parameter.stride()))
        return DistributedDataParallel(
            model,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            # Every step has the same graph; but DDP cannot learn it from passes that it skips.
            static_graph=not accumulates,
        )

    def sums(self, values: Tensor) -> list[float]:
        """The sums of a tensor's numbers over all processes: one exchange, one wait for a GPU.

        Args:
            values: (n,) on this process's device; changed in place.
        """
        if self.world_size > 1:
            dist.all_reduce(values)
        return values.tolist()

    def gather(self, value: Any) -> list[Any]:
        """The picklable values of all processes, by rank."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.cpu_group)
        return values

    def require_same(self, what: str, found: str) -> None:
        """Make sure that all processes have found the same; they share what follows from it.

        Args:
            what: the name of it, for the message.
            found: what this process has found, in a few words that tell it from anything else.

        Raises:
            UserError: on every process, when one of them has found something else than the first.
        """
        values = self.gather(found)
        others = [f"process {i}: {v}" for i, v in enumerate(values) if v != values[0]]
        if others:
            raise UserError(
                f"{what}: the processes do not see the same. Process 0: {values[0]}; "
                f"{'; '.join(others)}. On a shared disk wait until all machines show the same "
                "files and start again; on disks of their own make them equal"
            )

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process; all processes get the same answer."""
        if self.world_size == 1:
            return flag
        value = torch.tensor(int(flag))
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self.cpu_group)
        return bool(value)

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            dist.barrier(group=self.cpu_group)

    @contextmanager
    def lost_processes(self) -> Iterator[None]:
        """Say what it means when another process does not answer.

        Raises:
            UserError: in place of the errors of gloo and NCCL.
        """
        try:
            yield
        except RuntimeError as error:
            text = str(error)
            if not isinstance(error, dist.DistError) and "gloo" not in text:
                raise
            resume = "and resume with --auto_resume"
            if "timed out" in text.lower() or "timeout" in text.lower():
                raise UserError(
                    f"process {self.rank} of {self.world_size} has waited {self.timeout:g} seconds "
                    "for another one, which is stopped or hangs; look at all of their machines, or "
                    f"raise dist_params.timeout, {resume}"
                ) from None
            raise UserError(
                f"process {self.rank} of {self.world_size} has lost another one; see in the log "
                f"and above why that has ended, {resume} ({text.splitlines()[0]})"
            ) from None

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the body on the main process alone, then let the others pass.

        A `UserError` there is raised on every process, so that none waits for a dead one.
        """
        message = None
        if self.is_main:
            try:
                yield
            except UserError as error:
                message = str(error)
        else:
            yield
        message = self.gather(message)[0]
        if message is not None:
            raise UserError(message)


def _with_strides(strides: tuple[int, ...], grad: Tensor) -> Tensor:
    """The same gradient with its parameter's strides, where both say the same order of bytes.

    The stride along a side of length 1 may be any number: oneDNN gives depthwise weights
    channels-last ones, and data-parallel training wants those of the parameter.
    """
    sides = zip(grad.shape, grad.stride(), strides, strict=True)
    if all(size == 1 or ours == theirs for size, ours, theirs in sides):
        return grad.as_strided(grad.shape, strides)
    return grad


def no_sync(wrapped: nn.Module, skip: bool) -> Any:
    """Context in which gradients are only summed up locally, when `skip`."""
    if skip and isinstance(wrapped, DistributedDataParallel):
        return wrapped.no_sync()
    return nullcontext()


def _slurm_environment(port: int) -> None:
    """Set torch's variables from SLURM's."""
    try:
        rank, world = os.environ["SLURM_PROCID"], os.environ["SLURM_NTASKS"]
        local_rank, nodes = os.environ["SLURM_LOCALID"], os.environ["SLURM_NODELIST"]
    except KeyError as error:
        raise UserError(
            f"--launcher slurm: the variable {error.args[0]} is not set; start the program with "
            "srun inside a SLURM job"
        ) from None
    if "MASTER_ADDR" not in os.environ:
        try:
            hosts = subprocess.run(
                ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
            ).stdout.split()
        except (OSError, subprocess.CalledProcessError):
            raise UserError(
                "--launcher slurm: scontrol does not answer; set MASTER_ADDR to the first node"
            ) from None
        os.environ["MASTER_ADDR"] = hosts[0]
    os.environ.setdefault("MASTER_PORT", str(port))
    os.environ.update(RANK=rank, WORLD_SIZE=world, LOCAL_RANK=local_rank)
    if (tasks := os.environ.get("SLURM_NTASKS_PER_NODE", "")).isdigit():
        os.environ["LOCAL_WORLD_SIZE"] = tasks


def _device(num_gpu: int | str, local_rank: int, launcher: Launcher = "none") -> torch.device:
    if num_gpu == 0 or not torch.cuda.is_available():
        return torch.device("cpu")
    if launcher == "slurm" and torch.cuda.device_count() == 1:
        local_rank = 0  # --gpus-per-task=1: every task sees its own GPU only, as number 0
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {local_rank} of this machine has no GPU: there are "
            f"{torch.cuda.device_count()}; start as many processes as GPUs (--nproc_per_node)"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _store_of_this_attempt() -> tuple[dist.Store, int, int]:
    """(store, rank, world size) for a process group, without keys of earlier attempts.

    After a restart torchrun lends the new processes the store of the dead ones. Who takes the
    addresses in it for those of the living waits for a dead process. The nodes count restarts
    differently, so rank 0 makes up a prefix and tells it to each process that shows a new name.

    Raises:
        UserError: a process did not come within `JOIN_LIMIT`.
    """
    store, rank, world_size = next(dist.rendezvous("env://"))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return store, rank, world_size
    own_name = uuid.uuid4().hex
    if rank > 0:
        store.set(f"hidiff/name/{rank}", own_name)
        prefix = store.get(f"hidiff/prefix_for/{own_name}").decode()
        store.set(f"{prefix}/joined/{rank}", "yes")
        return dist.PrefixStore(prefix, store), rank, world_size
    prefix = f"hidiff/{own_name}"
    deadline = time.monotonic() + JOIN_LIMIT
    for other in range(1, world_size):
        while not store.check([f"{prefix}/joined/{other}"]):
            # The name may be one of an earlier attempt; then nobody reads the answer.
            name = store.get(f"hidiff/name/{other}").decode()
            store.set(f"hidiff/prefix_for/{name}", prefix)
            time.sleep(0.01)
            if time.monotonic() > deadline:
                raise UserError(f"process {other} did not start within {JOIN_LIMIT:.0f} seconds")
    return dist.PrefixStore(prefix, store), rank, world_size


@contextmanager
def start_processes(
    launcher: Launcher,
    *,
    num_gpu: int | str = "auto",
    backend: str = "nccl",
    port: int = 29500,
    timeout: float = 1800.0,
) -> Iterator[Processes]:
    """Join the other processes of the launch, and leave them at the end.

    Args:
        launcher: 'pytorch' for torchrun and torch.distributed.launch, 'slurm' for srun, 'none' for
            a single process; but where `WORLD_SIZE` says that there are others, 'pytorch' is taken.
        num_gpu: 0 chooses the CPU.
        backend: of the exchange between GPUs; gloo is used on CPUs.
        port: of the first process under SLURM.
        timeout: seconds that a process waits for another.

    Raises:
        UserError: the launcher's variables are missing, or there are fewer GPUs than processes; or
            another process ends, or does not answer within `dist_params.timeout` seconds.
    """
    if launcher == "none" and os.environ.get("WORLD_SIZE", "1") != "1":
        # Each process would be a training of its own, in the same folder.
        launcher = "pytorch"
        if os.environ.get("RANK") == "0":
            print("WORLD_SIZE is set: --launcher pytorch is taken", file=sys.stderr)
    # Before the first word with the others, which fails where torchrun is gone already.
    agent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
    if launcher == "slurm":
        _slurm_environment(port)
    if launcher == "none":
        yield Processes(0, 1, _device(num_gpu, 0))
        return
    needed = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in os.environ]
    if missing:
        raise UserError(
            f"--launcher pytorch: {', '.join(missing)} not set; start the program with "
            "torchrun --nproc_per_node=GPUS train.py … --launcher pytorch; for a single process "
            "leave --launcher out and WORLD_SIZE unset"
        )
    device = _device(num_gpu, int(os.environ["LOCAL_RANK"]), launcher)
    backend = backend if device.type == "cuda" else "gloo"
    store, rank, world_size = _store_of_this_attempt()
    wait = datetime.timedelta(seconds=timeout)
    dist.init_process_group(
        backend=backend, store=store, rank=rank, world_size=world_size, timeout=wait
    )
    try:
        # On CPUs the default group serves for Python values too.
        cpu_group = dist.new_group(backend="gloo", timeout=wait) if backend != "gloo" else None
        processes = Processes(
            dist.get_rank(), dist.get_world_size(), device, cpu_group, agent, timeout
        )
        with processes.lost_processes():
            yield processes
            # Who leaves while others still talk to it takes their connection away.
            processes.barrier()
    finally:
        dist.destroy_process_group()
