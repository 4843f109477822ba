"""Short trainings in this process."""

import copy
import multiprocessing
import os
from pathlib import Path

import torch
import torch.distributed as dist
from small_data import train_options

from hidiff import UserError
from hidiff.engine.trainer import Trainer
from hidiff.options import parse_options
from hidiff.utils.distributed import Processes

ALONE = Processes(0, 1, torch.device("cpu"))


NAFNET = {
    "type": "NAFNet",
    "width": 4,
    "enc_blk_nums": [1, 1],
    "dec_blk_nums": [1, 1],
    "middle_blk_num": 0,
}


def quick_options(folder: Path, **changes):
    """A training of four steps in one phase, of a network that is quicker than HI-Diff's.

    It is not validated; `changes` replace values of `train`.
    """
    options = train_options(folder, 1, **{"pixel_opt": {"type": "L1Loss"}, **changes})
    options |= {"name": "quick", "model_type": "Regression", "network_g": dict(NAFNET), "val": {}}
    del options["network_le"], options["datasets"]["val"]
    data = options["datasets"]["train"]
    for phases in ("mini_batch_sizes", "iters", "gt_sizes"):
        del data[phases]
    data["gt_size"] = 16
    options["logger"] |= {"save_checkpoint_freq": 1, "use_tb_logger": False}
    return options


def validated(options, folder: Path, frequency: int):
    """The same options with the pairs of `test` as validation set."""
    options["datasets"]["val"] = train_options(folder, 1)["datasets"]["val"]
    options["val"] = {"val_freq": frequency, "metrics": {"psnr": {"type": "calculate_psnr"}}}
    return options


def build(options, processes=ALONE, **kwargs):
    return Trainer(parse_options(copy.deepcopy(options)), processes, **kwargs)


def train(options, **kwargs):
    trainer = build(options, **kwargs)
    trainer.run()
    return trainer


def spoil(trainer, steps, how=lambda loss: loss * float("nan")):
    """Let the losses of these steps be something else."""
    forward = trainer.model.forward

    def spoilt(lq, gt, **draws):
        losses = forward(lq, gt, **draws)
        bad = trainer.state.step + 1 in steps
        return {name: how(loss) if bad else loss for name, loss in losses.items()}

    trainer.model.forward = spoilt


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


def assert_same_weights(ours, theirs):
    """Bit for bit; both are dictionaries of tensors."""
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def log_of(name="quick"):
    """The text of the experiment's log files, in order."""
    files = sorted(Path("experiments", name).glob("train_*.log"))
    return "".join(file.read_text() for file in files)


def compiled_blocks(model):
    return [m for m in model.modules() if m._compiled_call_impl is not None]
