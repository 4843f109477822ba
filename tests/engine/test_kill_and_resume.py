"""A run that is killed at any moment goes on and ends with the same bits."""

import signal
from pathlib import Path

import pytest
import torch
from small_data import make_pairs, write_yaml
from small_programs import start
from small_training import assert_same_weights, quick_options, validated

from hidiff.engine import checkpoint
from hidiff.utils.errors import EXIT_INTERRUPTED
from hidiff.weights.model_file import read_model_file

ROOT = Path(__file__).resolve().parents[2]
STEPS = 6
KILLING = """
import os, signal, sys
from hidiff.cli import run
from hidiff.engine import checkpoint, validation
from hidiff.engine.trainer import Trainer
from hidiff.utils import files
from hidiff.weights import model_file

place, step = os.environ["KILL_AT"].split(":")

def killing(name, function):
    def killed(*args, **kwargs):
        if name == place and CURRENT[0] >= int(step):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return killed

CURRENT = [0]
train_step = Trainer.train_step

def counted(self, step):
    CURRENT[0] = step
    return train_step(self, step)

Trainer.train_step = counted
Trainer._update = killing("update", Trainer._update)
checkpoint.save_model = killing("model", checkpoint.save_model)
checkpoint.torch.save = killing("state", checkpoint.torch.save)
files.os.fsync = killing("sync", files.os.fsync)
validation.evaluate = killing("validation", validation.evaluate)
run("train")
"""
KILLS = ("update:2", "model:3", "state:4", "sync:5", "validation:6")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    make_pairs(folder / "train", 3)
    make_pairs(folder / "test", 2, height=32, width=32)
    for name in ("whole", "killed"):
        content = validated(quick_options(folder, total_iter=STEPS, ema_decay=0.9), folder, 2)
        content["datasets"]["train"]["num_worker_per_gpu"] = 1
        write_yaml(folder / f"{name}.yml", {**content, "name": name})
    return folder


def train(folder, name, kill="never:0"):
    arguments = ("-opt", folder / f"{name}.yml", "--auto_resume")
    with start(folder, "-c", KILLING, *arguments, KILL_AT=kill) as program:
        output = program.output.read()
        return program.wait(), output


def result(folder, name):
    """The last state and model file of an experiment."""
    experiment = folder / "experiments" / name
    state = torch.load(experiment / f"training_states/{STEPS}.state", weights_only=True)
    return state, read_model_file(experiment / f"models/{name}_{STEPS}.safetensors")


@pytest.mark.slow("seven processes of PyTorch, which train")
def test_kills_everywhere_change_no_bit(folder):
    code, output = train(folder, "whole")
    assert code == 0, output
    for kill in KILLS:
        code, output = train(folder, "killed", kill)
        assert code == -signal.SIGKILL, (kill, output)
        states = folder / "experiments/killed/training_states"
        # Whatever has its final name is whole.
        for path in states.glob("*.state"):
            checkpoint.load_state(path, "a test")
        for path in (folder / "experiments/killed/models").glob("*.safetensors"):
            read_model_file(path)
    code, output = train(folder, "killed")
    assert code == 0, output
    ours, theirs = result(folder, "killed"), result(folder, "whole")
    for part in ("networks", "average"):
        assert_same_weights(ours[0][part]["net_g"], theirs[0][part]["net_g"])
    assert_same_weights(ours[1].networks["net_g"], theirs[1].networks["net_g"])
    for key in ("step", "best", "validated"):
        assert ours[0][key] == theirs[0][key]
    for number, moments in theirs[0]["optimizer"]["state"].items():
        assert_same_weights(ours[0]["optimizer"]["state"][number], moments)
    assert not list((folder / "experiments/killed").rglob("*.part"))


@pytest.mark.slow("a process of PyTorch, which trains")
def test_a_stop_has_an_exit_code_of_its_own_and_kills_no_step(folder):
    content = quick_options(folder, total_iter=10**6)
    content["logger"]["save_checkpoint_freq"] = 10**6
    write_yaml(folder / "long.yml", {**content, "name": "long"})
    arguments = (ROOT / "train.py", "-opt", folder / "long.yml")
    with start(folder, *arguments) as training:
        assert any(line.startswith("step 1/") for line in training.output)
        training.send_signal(signal.SIGHUP)
        output = training.output.read()
        assert training.wait() == EXIT_INTERRUPTED
    assert output.count("resumable with --auto_resume") == 1
    (state,) = (folder / "experiments/long/training_states").glob("*.state")
    assert f"step {state.stem}/" in output


@pytest.mark.slow("a process of PyTorch, which trains")
def test_a_console_that_is_lost_ends_the_run_with_a_whole_checkpoint(folder):
    content = quick_options(folder, total_iter=10**6)
    write_yaml(folder / "lost.yml", {**content, "name": "lost"})
    with start(folder, ROOT / "train.py", "-opt", folder / "lost.yml") as training:
        assert any(line.startswith("step 2/") for line in training.output)
        training.output.close()
        training.output = None
        assert training.wait(timeout=60) == 2
    state, notices = checkpoint.newest_state(folder / "experiments/lost/training_states")
    assert (state.content["step"] >= 1, notices) == (True, [])
    (log,) = (folder / "experiments/lost").glob("*.log")
    assert "console" in log.read_text()
