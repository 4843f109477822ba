"""Settings that every test shares."""

import os
import shutil
import signal
import sys
import threading
from pathlib import Path

# One thread a process: more are slower for networks and images as small as the tests'.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TORCHINDUCTOR_COMPILE_THREADS="1")

import pytest
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
# The suite tests this checkout, installed or not; tests/ itself holds shared helpers.
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["PYTHONPATH"] = str(ROOT)  # programs that tests start
# A suite that a script starts in the background inherits these ignored, and so would its programs.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# tqdm's own lock is shared with forked processes; one that a test kills would hold it for ever.
tqdm.set_lock(threading.RLock())


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that no process is left alone with one in the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder with pairs of images in `train` and `test`."""
    from small_data import make_pairs

    folder = tmp_path_factory.mktemp("data")
    make_pairs(folder / "train", 3)
    # Sides that are no multiples of 8.
    make_pairs(folder / "test", 2, height=37, width=43)
    return folder


@pytest.fixture(scope="session")
def _both_stages(data, tmp_path_factory):
    """What `trained` gives, in a folder that nothing is added to."""
    from small_data import train_options
    from small_training import ALONE, parameters, train

    from hidiff.engine.trainer import Trainer
    from hidiff.options import parse_options

    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(train_options(data, 1))
        before = parameters(stage2 := Trainer(parse_options(train_options(data, 2)), ALONE))
        stage2.run()
        return folder, before, parameters(stage2)


@pytest.fixture(scope="module")
def trained(_both_stages, tmp_path_factory):
    """A folder of the module's own in which both stages were trained.

    And the weights of stage 2 before its training and after it.
    """
    first, before, after = _both_stages
    folder = tmp_path_factory.mktemp("run") / "trained"
    shutil.copytree(first, folder, symlinks=True)
    return folder, before, after
