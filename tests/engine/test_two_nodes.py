"""Two torchrun agents that meet by c10d rendezvous train as one agent with two processes."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import torch
from small_data import make_pairs

HERE = Path(__file__).resolve().parent


def launch(folder, *arguments):
    """Start torchrun on float64_training.py, without waiting for it."""
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*agents):
    """Wait for them; on a failure none is left behind."""
    try:
        for agent in agents:
            output, _ = agent.communicate(timeout=120)
            assert agent.returncode == 0, output
    finally:
        for agent in agents:
            if agent.poll() is None:
                # torchrun ends its processes when it is asked to end.
                agent.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    agent.wait(40)


def test_two_nodes_are_one(tmp_path):
    make_pairs(tmp_path / "train", 3)
    training = (str(HERE / "float64_training.py"), str(tmp_path))
    finish(launch(tmp_path, "--standalone", "--nproc_per_node=2", *training, "one_node", "2"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = ("--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_id=two_nodes",
               "--nnodes=2", "--nproc_per_node=1", "--local_addr=127.0.0.1")  # fmt: skip
    finish(*(launch(tmp_path, *meeting, *training, "two_nodes", "2") for _ in range(2)))

    one, two = (
        torch.load(tmp_path / f"{name}.pth", weights_only=True)
        for name in ("one_node", "two_nodes")
    )
    assert one["images"] == two["images"]
    assert len(one["images"]) == 5
    assert len(one["weights"]) > 50
    start = torch.load(tmp_path / "one_node_g.pth", weights_only=True)["params"]
    moved = 0
    for key, value in one["weights"].items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, two["weights"][key], rtol=1e-10, atol=1e-12)
        name = key.removeprefix("net_g.")
        moved += name in start and not torch.equal(value, start[name])
    assert moved > 30
