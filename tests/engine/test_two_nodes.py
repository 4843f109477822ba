"""The same training by one process, by two of one torchrun, and by two torchruns with one each.

The torchruns meet by c10d rendezvous.
"""

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from small_data import make_pairs
from small_programs import start

PROGRAM = Path(__file__).resolve().parent / "float64_training.py"
TORCHRUN = ("-m", "torch.distributed.run")


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """A function that trains with the global batch of 2 or 4 processes; what the run has saved."""
    folder = tmp_path_factory.mktemp("nodes")
    make_pairs(folder / "train", 3)
    results = {}

    def train(name, reference, *launches):
        key = f"{name}_{reference}"
        if key not in results:
            program = (PROGRAM, folder, key, reference)
            with ExitStack() as running:
                started = [
                    running.enter_context(start(folder, *launch, *program)) for launch in launches
                ]
                for one in started:
                    output = one.output.read()
                    assert one.wait() == 0, output
            saved = torch.load(folder / f"{key}.pth", weights_only=True)
            first = torch.load(folder / f"{key}_g.pth", weights_only=True)["params"]
            results[key] = (*saved.values(), {f"net_g.{k}": v for k, v in first.items()})
        return results[key]

    return train


def two_nodes():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = ("--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_id=two_nodes",
               "--nnodes=2", "--nproc_per_node=1", "--local_addr=127.0.0.1")  # fmt: skip
    return [(*TORCHRUN, *meeting)] * 2


@pytest.mark.slow("starts two or three processes of PyTorch, which meet and train")
@pytest.mark.parametrize(("nodes", "reference"), [(1, 4), (2, 2)])
def test_two_processes_are_one_that_accumulates(train, nodes, reference):
    """Three steps in float64 give the same weights to 1e-10, and read the same images.

    For the batch of 4 the two processes accumulate as well.
    """
    launches = [(*TORCHRUN, "--standalone", "--nproc_per_node=2")] if nodes == 1 else two_nodes()
    images, weights, first = train("alone", reference, ())
    other_images, other_weights, _ = train(f"{nodes}_nodes", reference, *launches)
    assert images == other_images
    assert len(images) == 3
    assert len(weights) > 50
    for key, value in weights.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, other_weights[key], rtol=1e-10, atol=1e-12)
    assert sum(not torch.equal(value, weights[key]) for key, value in first.items()) > 30
