"""Several processes that train together: they see the same, and exchange little."""

import copy
import os
import re
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from small_data import make_pairs, write_yaml
from small_programs import run, start
from small_training import build, in_two_processes, quick_options

from hidiff import UserError, build_model
from hidiff.engine import checkpoint
from hidiff.engine.experiment import training_warnings
from hidiff.options import parse_options
from hidiff.utils.distributed import Processes, start_processes
from hidiff.utils.errors import EXIT_INTERRUPTED
from hidiff.utils.files import lock_folder

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).resolve().parent / "float64_training.py"
TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")


@pytest.fixture(scope="module")
def options():
    return quick_options(Path("data"), reference_world_size=2)


@pytest.fixture(scope="module")
def machine(tmp_path_factory, options):
    """A folder with data and the training states of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("machine")
    make_pairs(folder / "data/train", 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trainer = build(options)
        for step in (2, 4):
            trainer.state.step = step
            trainer._save()
    return folder


def resume(options, folders, prepare=lambda rank: None):
    """The step after which each of two processes would go on, or why it would not."""

    def work(processes):
        os.chdir(folders[processes.rank])
        prepare(processes.rank)
        return build(options, processes, auto_resume=True).state.step

    return in_two_processes(work, folders[0])


def test_the_first_process_chooses_the_state(machine, options):
    def stale(rank):
        states = checkpoint._states
        checkpoint._states = lambda folder: states(folder)[: 2 - rank]

    assert resume(options, [machine, machine], stale) == [4, 4]


def another_state(folder):
    states = folder / "experiments/quick/training_states"
    shutil.copyfile(states / "2.state", states / "4.state")


def no_state(folder):
    (folder / "experiments/quick/training_states/4.state").unlink()


def fewer_images(folder):
    for part in ("input", "target"):
        (folder / f"data/train/{part}/scene-001.png").unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (another_state, "training state: .*0: .*of step 4.*1: .*4.state of step 2"),
        (no_state, "training state: .*0: .*of step 4.*1: .*4.state does not exist"),
        (fewer_images, "training set.*0: 3 pairs.*1: 2 pairs"),
    ],
)
def test_processes_that_see_other_files_refuse(machine, options, tmp_path, change, message):
    other = tmp_path / "other"
    shutil.copytree(machine, other)
    change(other)
    for problem in resume(options, [machine, other]):
        with pytest.raises(UserError, match=message):
            raise problem


@pytest.mark.parametrize("auto", [True, False])
def test_a_step_exchanges_once_and_one_bad_loss_skips_it_everywhere(machine, options, auto):
    """The reduction of the gradients is the wrapper's own, and not counted here."""
    content = {**copy.deepcopy(options), "name": f"counted_{auto}"}
    if auto:
        content["train"]["micro_batch"] = "auto"

    def work(processes):
        os.chdir(machine)
        trainer = build(content, processes, dry=True)
        losses = {"l_pix": torch.tensor(float("inf") if processes.rank else 1.0)}
        trainer.gradients.accumulate = lambda step, source: (losses, ["an image"])
        exchanges = []
        for name in ("all_reduce", "all_gather_object", "barrier", "broadcast"):
            exchange = getattr(dist, name)

            def counted(*args, name=name, exchange=exchange, **kwargs):
                exchanges.append(name)
                return exchange(*args, **kwargs)

            setattr(dist, name, counted)
        trainer.train_step(1)  # the names of the images are gathered for the message
        losses["l_pix"] = torch.tensor(1.0)
        bad, skipped = trainer.state.bad_steps, list(exchanges)
        exchanges.clear()
        trainer.stop.received = "SIGTERM" if processes.rank else None
        stopping = trainer.train_step(2)
        return bad, skipped, trainer.state.bad_steps, exchanges, stopping

    expected = (1, ["all_reduce", "all_gather_object"], 0, ["all_reduce"], True)
    assert in_two_processes(work, machine) == [expected, expected]


def test_memory_is_found_together(machine, options):
    """In a real step a process that fails would leave the other waiting for its gradients."""
    content = {**copy.deepcopy(options), "name": "together"}
    content["train"]["micro_batch"] = "auto"

    def work(processes):
        os.chdir(machine)
        trainer = build(content, processes, dry=True)
        trainer.gradients._fits = lambda phase: (
            processes.rank == 0 or trainer.micro_batches.size(phase) == 1
        )
        trainer.gradients._fit_together(0)
        return trainer.micro_batches.size(0)

    assert in_two_processes(work, machine) == [1, 1]


@pytest.fixture(scope="module")
def float64(tmp_path_factory):
    """A function that trains with the global batch of some processes; what the run has saved."""
    folder = tmp_path_factory.mktemp("nodes")
    make_pairs(folder / "train", 3)

    def train(name, reference, *launches):
        started = [start(folder, *launch, PROGRAM, folder, name, reference) for launch in launches]
        for one in started:
            with one:
                output = one.output.read()
                assert one.wait() == 0, output
                assert "strides" not in output  # of the gradients of depthwise weights
        saved = torch.load(folder / f"{name}.pth", weights_only=True)
        return saved["images"], saved["weights"], saved["first"]

    return train


def two_nodes():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = ("--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_id=two_nodes",
               "--nnodes=2", "--nproc_per_node=1", "--local_addr=127.0.0.1")  # fmt: skip
    return [("-m", "torch.distributed.run", *meeting)] * 2


@pytest.mark.slow("starts five processes of PyTorch, which train")
def test_two_processes_or_nodes_are_one_that_accumulates(float64):
    """Three steps in float64 give the same weights to 1e-10, and read the same images."""
    images, weights, first = float64("alone", 2, ())
    assert len(images) == 3
    assert len(weights) > 50
    assert sum(not torch.equal(value, weights[key]) for key, value in first.items()) > 30
    for name, launches in (("one_node", [TORCHRUN]), ("two_nodes", two_nodes())):
        other_images, other_weights, _ = float64(name, 2, *launches)
        assert images == other_images
        for key, value in weights.items():
            assert value.dtype == torch.float64
            torch.testing.assert_close(value, other_weights[key], rtol=1e-10, atol=1e-12)


FAILING = """
import os, time
from pathlib import Path
from hidiff.cli import run
from hidiff.engine.trainer import Trainer

update = Trainer._update

def fail_once(self):
    flag = Path("failed_once")
    if os.environ["RANK"] == "1" and self.state.step == 3 and not flag.exists():
        flag.touch()
        raise ZeroDivisionError("planted")
    update(self)

Trainer._update = fail_once
try:
    run("train")
finally:
    if os.environ["RANK"] == "0":
        time.sleep(1)  # torchrun looks for the first failure ten times a second
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    make_pairs(tmp_path / "train", 3)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow("a training of two processes under torchrun, started again by it")
def test_a_process_that_fails_brings_the_run_down_and_torchrun_starts_it_again(folder):
    (folder / "failing.py").write_text(FAILING)
    options = write_yaml(folder / "quick.yml", quick_options(folder))
    # The launch line of the release.
    launch = ("-m", "torch.distributed.launch", *TORCHRUN[2:], "--max-restarts=1")
    result = run(
        folder, *launch, "failing.py", "-opt", options, "--launcher", "pytorch", "--auto_resume"
    )
    assert result.returncode == 0, result.stderr
    first, second = (p.read_text() for p in sorted((folder / "experiments/quick").glob("*.log")))
    assert "ERROR: process 1 of 2 failed: Traceback" in first
    assert "ZeroDivisionError: planted" in first
    assert re.search("ERROR: process 0 of 2 failed: process 0 of 2 has lost another", first)
    # The first process may have saved step 3, which it had done.
    assert re.search("resumed after step [23]", second)
    assert "training is complete" in second


@pytest.mark.slow("a training of two processes under torchrun")
def test_a_stop_is_no_failure_to_start_again_after(folder):
    """SIGUSR1 to a process ends torchrun with an error, which does not use up its new starts.

    Torchrun without --launcher trains once, not once a process.
    """
    content = quick_options(folder, total_iter=10**6)
    content["logger"]["save_checkpoint_freq"] = 10**6
    options = write_yaml(folder / "quick.yml", content)
    program = (ROOT / "train.py", "-opt", options, "--auto_resume")
    with start(folder, *TORCHRUN, "--max-restarts=3", *program) as launcher:
        assert any(line.startswith("step 2/") for line in launcher.output)
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text()
        os.kill(int(children.split()[-1]), signal.SIGUSR1)
        output = launcher.output.read()
        assert launcher.wait() == 1
    assert "resumable with --auto_resume" in output
    assert "resumed after step" not in output
    assert len(list((folder / "experiments/quick").glob("*.log"))) == 1
    assert len(list((folder / "experiments/quick/training_states").glob("*.state"))) == 1


STOPPING = """
import os, signal
from hidiff.cli import run
from hidiff.engine.gradients import Gradients

accumulate = Gradients.accumulate

def stop(self, step, source):
    if self.processes.rank == 1 and step == 3:
        os.kill(os.getpid(), signal.SIGSTOP)
    return accumulate(self, step, source)

Gradients.accumulate = stop
run("train")
"""


def test_a_process_that_hangs_ends_the_others(folder):
    """Without torchrun, which waits 30 seconds for a process that cannot hear it."""
    content = quick_options(folder) | {"dist_params": {"timeout": 3}}
    options = write_yaml(folder / "quick.yml", content)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    ranks = [
        start(folder, "-c", STOPPING, "-opt", options, "--launcher", "pytorch",
              **launch, RANK=rank, LOCAL_RANK=rank)
        for rank in ("0", "1")
    ]  # fmt: skip
    with ranks[0], ranks[1]:
        assert ranks[0].wait() == 2
        assert "dist_params.timeout" in ranks[0].output.read()
        assert "dist_params.timeout" in next(folder.glob("experiments/*/*.log")).read_text()
        assert ranks[1].poll() is None
        ranks[1].send_signal(signal.SIGKILL)


def test_a_signal_ends_a_process_that_waits_for_another(tmp_path):
    script = (
        "import threading\n"
        "from hidiff.utils.signals import StopRequest\n"
        "with StopRequest(grace=0.5):\n"
        "    print('ready', flush=True); threading.Event().wait()\n"
    )
    with start(tmp_path, "-c", script) as waiting:
        assert waiting.output.readline() == "ready\n"
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait(timeout=20) == EXIT_INTERRUPTED


@pytest.mark.parametrize(("launcher", "variable"), [("pytorch", "RANK"), ("slurm", "SLURM_PROCID")])
def test_a_launcher_without_its_variables_says_so(monkeypatch, launcher, variable):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=variable), start_processes(launcher):
        pass


def test_slurm_names_the_first_node_and_each_process(tmp_path, monkeypatch):
    """scontrol is a stand-in; one task alone joins itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = tmp_path / "scontrol"
    command.write_text("#!/bin/sh\necho 127.0.0.1\necho another\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")  # so that it is taken away afterwards
        monkeypatch.delenv(name)
    variables = {"PROCID": "0", "NTASKS": "1", "LOCALID": "0", "NODELIST": "node[1-2]"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with start_processes("slurm", num_gpu=0, port=port) as processes:
        assert (processes.rank, processes.world_size) == (0, 1)
        assert os.environ["MASTER_ADDR"] == "127.0.0.1"
        assert processes.gather("a") == ["a"]


def test_the_global_batch_is_said_only_where_several_processes_train(machine):
    options = parse_options(quick_options(Path("data")))
    model = build_model(options.sections)
    for count in (1, 2):
        processes = Processes(0, count, torch.device("cpu"))
        warnings = training_warnings(options, model, processes)
        assert any("reference_world_size" in warning for warning in warnings) == (count > 1)


def test_the_first_process_locks_the_folder(machine):
    with start(
        machine, "-c",
        "import time; from pathlib import Path; from hidiff.utils.files import lock_folder\n"
        "lock_folder(Path('experiments/locked'))\n"
        "print('locked', flush=True); time.sleep(600)\n",
    ) as other:  # fmt: skip
        assert other.output.readline() == "locked\n"

        def work(processes):
            os.chdir(machine)
            lock_folder(Path("experiments/locked"), processes, patience=0.0)

        started = time.monotonic()
        for problem in in_two_processes(work, machine):
            with pytest.raises(UserError, match=rf"process {other.pid} on "):
                raise problem
        assert time.monotonic() - started < 10
        assert not (machine / "experiments/locked").exists()
        other.send_signal(signal.SIGKILL)
        other.wait()
