"""scripts/slurm_train.sbatch with a real torchrun; srun, scontrol and train.py are stand-ins."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "scripts/slurm_train.sbatch"

SRUN = """#!/bin/bash
# Starts the command here and hands SIGUSR1 on: to the task, or to all of its processes too.
echo "$@" > srun_arguments
while [[ "$1" == --* ]]; do shift; done
family() { for child in $(pgrep -P "$1"); do echo "$child"; family "$child"; done; }
forward() {
    kill -USR1 "$task"
    if [ "$SIGNALLED" = all ]; then
        for process in $(family "$task"); do kill -USR1 "$process"; done
    fi
}
trap forward USR1
"$@" &
task=$!
while kill -0 "$task" 2> /dev/null; do wait "$task"; done
wait "$task"
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo localhost; else echo "$@" >> scontrol_calls; fi
"""
TRAIN = """
import os, signal, sys, time
from pathlib import Path

rank = os.environ["RANK"]

def save(number, frame):
    Path(f"saved_{rank}").touch()
    if "ends.yml" in sys.argv:
        raise SystemExit(0)
    if rank == "0":
        os.kill(os.getppid(), signal.SIGTERM)
    raise SystemExit(75)

signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGUSR1, save)
Path(f"arguments_{rank}").write_text(" ".join(sys.argv[1:]))
if "fail.yml" in sys.argv:
    raise SystemExit(2)
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    time.sleep(0.05)
"""


def job_with_a_free_port():
    """A job number; the script's port is 20000 + number % 20000."""
    for number in range(os.getpid() % 10_000, 20_000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", 20_000 + number))
            return number
    raise AssertionError("no free port")


@pytest.fixture
def submit(tmp_path):
    """Start the script as SLURM would, with two processes on one node."""
    if not shutil.which("pkill"):
        pytest.skip("needs pkill")
    programs = tmp_path / "bin"
    programs.mkdir()
    torchrun = f'#!/bin/bash\nexec "{sys.executable}" -m torch.distributed.run "$@"\n'
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("torchrun", torchrun)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (tmp_path / "train.py").write_text(TRAIN)
    started = []

    def start(*arguments, signalled="task"):
        process = subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            cwd=tmp_path,
            env={
                **os.environ,
                "PATH": f"{programs}:{os.environ['PATH']}",
                "SLURM_JOB_ID": str(job_with_a_free_port()),
                "SLURM_NNODES": "1",
                "SLURM_JOB_NODELIST": "node[1]",
                "NPROC_PER_NODE": "2",
                "SIGNALLED": signalled,
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_it_is_a_shell_script_with_what_slurm_needs():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    directives = [line for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --signal=B:USR1@120" in directives
    assert "#SBATCH --requeue" in directives
    assert "#SBATCH --ntasks-per-node=1" in directives


@pytest.mark.slow("a real torchrun, which imports PyTorch")
@pytest.mark.parametrize(("options", "signalled"), [("long.yml", "all"), ("ends.yml", "task")])
def test_before_the_end_it_saves_and_is_queued_again(submit, tmp_path, options, signalled):
    """But not where the training has just reached its own end."""
    process = submit(options, "--force_yml", "name=x", signalled=signalled)
    deadline = time.monotonic() + 60
    while not all((tmp_path / f"arguments_{rank}").exists() for rank in (0, 1)):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=60)
    assert all((tmp_path / f"saved_{rank}").exists() for rank in (0, 1))
    assert (process.returncode == 0) == (options == "ends.yml"), errors
    if options == "ends.yml":
        assert not (tmp_path / "scontrol_calls").exists()
        return
    requeued, arguments = (
        (tmp_path / name).read_text() for name in ("scontrol_calls", "srun_arguments")
    )
    number = int(requeued.removeprefix("requeue "))
    assert f"--rdzv_endpoint=localhost:{20_000 + number}" in arguments
    expected = "-opt long.yml --force_yml name=x --launcher pytorch --auto_resume"
    assert (tmp_path / "arguments_0").read_text() == expected
    for wanted in ("--nnodes=1", "--rdzv_backend=c10d", "--max-restarts=3"):
        assert wanted in arguments


@pytest.mark.slow("a real torchrun, which imports PyTorch")
def test_a_job_that_fails_is_not_queued_again(submit, tmp_path):
    process = submit("fail.yml")
    _, errors = process.communicate(timeout=100)
    assert process.returncode != 0, errors
    assert not (tmp_path / "scontrol_calls").exists()
