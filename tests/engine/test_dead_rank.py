"""A process that fails brings the run down, says why in the log, and torchrun brings it back."""

import copy
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import torch
from small_data import make_pairs, train_options, write_yaml
from small_programs import run, start

from hidiff.engine.trainer import Trainer
from hidiff.options import parse_options
from hidiff.utils.distributed import Processes
from hidiff.utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
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
    make_pairs(tmp_path / "test", 1, height=32, width=32)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow("a training of two processes under torchrun, and once again")
@pytest.mark.parametrize("restarts", [0, 1])
def test_a_rank_that_fails(folder, restarts):
    (folder / "failing.py").write_text(FAILING)
    content = train_options(folder, 1)
    content["datasets"]["train"]["num_worker_per_gpu"] = 1
    options = write_yaml(folder / "tiny.yml", content)
    started = time.monotonic()
    result = run(
        folder, *TORCHRUN, f"--max-restarts={restarts}", "failing.py", "-opt", options,
        "--launcher", "pytorch", "--auto_resume",
    )  # fmt: skip
    logs = sorted((folder / "experiments/tiny_S1").glob("*.log"))
    first = logs[0].read_text()
    assert "ERROR: process 1 of 2 failed: Traceback" in first
    assert "ZeroDivisionError: planted" in first
    assert re.search("ERROR: process 0 of 2 failed: process 0 of 2 has lost another", first)
    if restarts:
        assert result.returncode == 0, result.stderr
        assert "resumed after step 2" in logs[1].read_text()
        assert "training is complete" in logs[1].read_text()
    else:
        assert result.returncode == 1
        assert time.monotonic() - started < 60
        assert "forcefully exiting" not in result.stderr
        # torchrun's summary names the process that failed first, with its traceback.
        summary = result.stderr[result.stderr.index("Root Cause") :]
        assert "rank      : 1" in summary
        assert "ZeroDivisionError: planted" in summary


def test_a_stop_is_no_failure_to_start_again_after(folder):
    """SIGUSR1 to a rank ends torchrun with an error, which does not use up its new starts.

    Torchrun without --launcher trains once, not once a process.
    """
    content = train_options(folder, 1, total_iter=10**6, max_bad_steps=10)
    content["datasets"]["train"] |= {"iters": [2, 10**6 - 2]}
    options = write_yaml(folder / "tiny.yml", content)
    program = (ROOT / "train.py", "-opt", options, "--auto_resume")
    with start(folder, *TORCHRUN, "--max-restarts=3", *program) as launcher:
        assert any(line.startswith("step 2/") for line in launcher.output)
        ranks = subprocess.check_output(["pgrep", "-P", str(launcher.pid)], text=True)
        os.kill(int(ranks.split()[-1]), signal.SIGUSR1)
        output = launcher.output.read()
        assert launcher.wait() == 1
    assert "resumable with --auto_resume" in output
    assert "resumed after step" not in output
    assert len(list((folder / "experiments/tiny_S1").glob("*.log"))) == 1


STOPPING = """
import os, signal
from hidiff.cli import run
from hidiff.engine.trainer import Trainer

accumulate = Trainer._accumulate

def stop(self, step):
    if self.processes.rank == 1 and step == 3:
        os.kill(os.getpid(), signal.SIGSTOP)
    return accumulate(self, step)

Trainer._accumulate = stop
run("train")
"""


def test_a_rank_that_is_stopped_ends_the_others(folder):
    """Without torchrun, which waits 30 seconds for a process that cannot hear it."""
    content = train_options(folder, 1) | {"dist_params": {"timeout": 3}}
    content["logger"]["use_tb_logger"] = False
    options = write_yaml(folder / "tiny.yml", content)
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


def test_the_log_tells_why_a_run_alone_failed(folder):
    run = Trainer(parse_options(train_options(folder, 1)), Processes(0, 1, torch.device("cpu")))
    run._accumulate = None
    with pytest.raises(TypeError):
        run.run()
    log = run.log_file.read_text()
    assert "ERROR: process 0 of 1 failed: Traceback" in log
    assert "TypeError" in log


def test_auto_resume_starts_again_where_nothing_was_saved(folder):
    """A run that ends before its first checkpoint is set aside, not refused and not lost."""
    options = train_options(folder, 1)
    alone = Processes(0, 1, torch.device("cpu"))
    Trainer(parse_options(copy.deepcopy(options)), alone)
    again = Trainer(parse_options(copy.deepcopy(options)), alone, auto_resume=True)
    assert again.state.step == 0
    assert "had no training state to resume" in again.log_file.read_text()
    archived = list(Path("experiments").glob("tiny_S1_archived_*"))
    assert len(archived) == 1
    assert list(archived[0].glob("*.log"))
    again.run()
    # With a state, however damaged, nothing is set aside: that is for a person to decide.
    for state in Path("experiments/tiny_S1/training_states").iterdir():
        state.write_bytes(b"")
    with pytest.raises(UserError, match="training_states"):
        Trainer(parse_options(copy.deepcopy(options)), alone, auto_resume=True)
