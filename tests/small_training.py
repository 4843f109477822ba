"""Short trainings in this process."""

import copy
import multiprocessing
import os
from pathlib import Path

import torch
import torch.distributed as dist

from hidiff import UserError
from hidiff.engine.trainer import Trainer
from hidiff.options import parse_options
from hidiff.utils.distributed import Processes

ALONE = Processes(0, 1, torch.device("cpu"))


def train(options, **kwargs):
    trainer = Trainer(parse_options(copy.deepcopy(options)), ALONE, **kwargs)
    trainer.run()
    return trainer


FORK = multiprocessing.get_context("fork")


def in_two_processes(work, folder: Path):
    """The results of `work(processes)` in two processes joined by gloo; a `UserError` is one too.

    They are forked, which is fast; after a backward pass here, none works there.
    """

    def run(rank, pipe):
        torch.set_num_threads(1)  # OpenMP's other threads do not survive the fork.
        rendezvous = f"file://{folder.absolute()}/rendezvous"
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
        try:
            pipe.send(work(Processes(rank, 2, torch.device("cpu"))))
        except UserError as error:
            pipe.send(error)
        os._exit(0)

    pipes, started = [], []
    for rank in range(2):
        ours, theirs = FORK.Pipe(duplex=False)
        pipes.append(ours)
        started.append(FORK.Process(target=run, args=(rank, theirs)))
        started[-1].start()
        theirs.close()
    try:
        return [pipe.recv() for pipe in pipes]
    finally:
        (folder / "rendezvous").unlink(missing_ok=True)
        for process in started:
            process.kill()
            process.join()


def parameters(trainer):
    return {
        f"{name}.{key}": tensor.clone()
        for name, network in trainer.model.networks().items()
        for key, tensor in network.state_dict().items()
    }


def compiled_blocks(model):
    return [m for m in model.modules() if m._compiled_call_impl is not None]
