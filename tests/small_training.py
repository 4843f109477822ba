"""Short trainings in this process."""

import copy

import torch

from hidiff.engine.distributed import Processes
from hidiff.engine.trainer import Trainer
from hidiff.options import parse_options

ALONE = Processes(0, 1, torch.device("cpu"))


def train(options, **kwargs):
    trainer = Trainer(parse_options(copy.deepcopy(options)), ALONE, **kwargs)
    trainer.run()
    return trainer


def parameters(trainer):
    return {
        f"{name}.{key}": tensor.clone()
        for name, network in trainer.model.networks().items()
        for key, tensor in network.state_dict().items()
    }


def compiled_blocks(model):
    return [m for m in model.modules() if m._compiled_call_impl is not None]
