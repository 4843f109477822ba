"""Processes that go on together start from the same state and the same data."""

import copy
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_data import make_pairs, test_options, train_options
from small_training import ALONE, in_two_processes

from hidiff import UserError
from hidiff.engine import checkpoint
from hidiff.engine.trainer import Trainer
from hidiff.evaluation.test_run import run_test
from hidiff.options import parse_options


@pytest.fixture(scope="module")
def options():
    content = train_options(Path("data"), 1, reference_world_size=2)
    content["logger"]["use_tb_logger"] = False
    return content


@pytest.fixture(scope="module")
def machine(tmp_path_factory, options):
    """A folder with data and the training states of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("machine")
    make_pairs(folder / "data/train", 3)
    make_pairs(folder / "data/test", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = Trainer(parse_options(copy.deepcopy(options)), ALONE)
        for step in (2, 4):
            run.state.step = step
            run._save()
    return folder


def resume(options, folders, prepare=lambda rank: None):
    """The step after which each of two processes would go on, or why it would not."""

    def work(processes):
        os.chdir(folders[processes.rank])
        prepare(processes.rank)
        run = Trainer(parse_options(copy.deepcopy(options)), processes, auto_resume=True)
        return run.state.step

    return in_two_processes(work, folders[0])


def test_the_first_process_chooses_the_state(machine, options):
    def stale(rank):
        states = checkpoint._states
        checkpoint._states = lambda folder: states(folder)[: 2 - rank]

    assert resume(options, [machine, machine], stale) == [4, 4]


def another_state(folder):
    states = folder / "experiments/tiny_S1/training_states"
    shutil.copyfile(states / "2.state", states / "4.state")


def no_state(folder):
    (folder / "experiments/tiny_S1/training_states/4.state").unlink()


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


def test_a_test_run_on_other_images_is_refused(machine, tmp_path):
    """Before the weights are read, of which there are none here."""
    other = tmp_path / "other"
    shutil.copytree(machine, other)
    (other / "data/test/input/scene-000.png").rename(other / "data/test/input/scene-009.png")
    (other / "data/test/target/scene-000.png").rename(other / "data/test/target/scene-009.png")

    def work(processes):
        os.chdir([machine, other][processes.rank])
        run_test(parse_options(test_options(Path("data"))), processes)

    for problem in in_two_processes(work, machine):
        with pytest.raises(UserError, match=r"images \(small\)"):
            raise problem


def test_one_infinite_loss_stops_the_step_on_all(tmp_path):
    def work(processes):
        loss = {"l_pix": torch.tensor(float("inf") if processes.rank else 1.0)}
        return Trainer._all_finite(SimpleNamespace(processes=processes), loss, 1.0)

    assert in_two_processes(work, tmp_path) == [False, False]
