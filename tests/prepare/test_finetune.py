"""Fine-tuning: what is held out and skipped, the training, and a result that is better or none."""

import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from small_data import picture, train_options, write_rgb

from hidiff import UserError
from hidiff.cli import call
from hidiff.data.pairs import Pair, find_pairs
from hidiff.engine.trainer import Trainer
from hidiff.evaluation.record import read_scores
from hidiff.models import build_model
from hidiff.options import parse_options
from hidiff.prepare.finetune import split, usable
from hidiff.prepare.pair_check import MAX_SHIFT, shift
from hidiff.utils.errors import Interrupted
from hidiff.weights.find import find_model
from hidiff.weights.model_file import model_sections, save_model


def main(arguments):
    return call("finetune", *map(str, arguments))


SMALL = [
    "--force_yml",
    "datasets:train:num_worker_per_gpu=0",
    "datasets:train:batch_size_per_gpu=2",
    "logger:save_checkpoint_freq=3",
    "logger:use_tb_logger=false",
]


def make_pair(folder, name, seed, moved=0, height=56, width=64):
    """A picture and the same blurred, and `moved` to the right by pixels."""
    sharp = picture(seed, height, width + 32)
    blurry = cv2.blur(sharp, (5, 5))[:, 16 - moved :][:, :width]
    write_rgb(folder / "input" / f"{name}.png", blurry)
    write_rgb(folder / "target" / f"{name}.png", sharp[:, 16 : 16 + width])
    return blurry, sharp[:, 16 : 16 + width]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A model file for training, of weights that nobody has trained."""
    path = tmp_path_factory.mktemp("start") / "start.safetensors"
    torch.manual_seed(1)
    options = parse_options(train_options(Path("data"), 2)).sections
    save_model(
        path,
        build_model(options),
        options=model_sections(options),
        name="start",
        step=0,
        total_iter=0,
        patch_size=32,
        licence="CC0",
    )
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for scene in "abc":
        for number in range(2):
            make_pair(Path("my pairs"), f"{scene} ({number})", ord(scene) + number)
    return tmp_path


def test_whole_scenes_are_held_out(here):
    pairs = find_pairs("my pairs").pairs
    choices = set()
    for seed in range(20):
        train, held_out = split(pairs, seed=seed)
        assert split(pairs, seed=seed) == (train, held_out)
        scenes = [{pair.scene for pair in part} for part in (train, held_out)]
        assert len(scenes[1]) == 1 and not scenes[0] & scenes[1]
        assert sorted(train + held_out, key=pairs.index) == pairs
        choices |= scenes[1]
    assert len(choices) == 3
    for test in (["b"], ["b (0)", "b (1)"]):
        assert [pair.name for pair in split(pairs, test=test)[1]] == ["b (0)", "b (1)"]
    assert split(pairs, held_out=1)[1] == pairs[-1:]
    for wrong in ({"test": ["d"]}, {"held_out": 6}, {"test": list("abc")}):
        with pytest.raises(UserError, match=r"^--test: .*'d'|^--data: all"):
            split(pairs, **wrong)
    with pytest.raises(UserError, match=r"^--data: .*--held_out"):
        split(pairs[:2])


@pytest.mark.parametrize("part", ["test", "val", "valid", "validation"])
def test_the_other_parts_of_a_data_set_are_held_out(part):
    pairs = [
        Pair(s, s, s, scene=s, part=p) for s, p in zip("abc", ("", "train", part), strict=True)
    ]
    assert split(pairs) == (pairs[:2], pairs[2:])
    with pytest.raises(UserError, match=f"--held_out: .*{part}"):
        split(pairs, held_out=1)


@pytest.mark.parametrize("size", [(56, 64), (130, 620)])
def test_the_shift_is_that_in_pixels(tmp_path, size):
    for moved in (0, 1, 4):
        found = shift(*make_pair(tmp_path, "0", 1, moved=moved, height=size[0], width=size[1]))
        assert found == pytest.approx(moved, abs=0.4)
    black = np.zeros((40, 40, 3), np.uint8)
    assert shift(black, black) is None


def test_what_is_no_pair_is_listed_and_skipped(tmp_path, caplog):
    for index in range(9):
        make_pair(tmp_path, str(index), index, moved=4 * (index == 1))
    make_pair(tmp_path, "2", 2, height=24)
    write_rgb(tmp_path / "target/3.png", picture(3, 56, 60))
    (tmp_path / "input/4.png").write_bytes(b"no image")
    pairs = find_pairs(tmp_path).pairs
    with caplog.at_level(logging.INFO, "hidiff"):
        good, side = usable(pairs, 32)
    skipped = [line for line in caplog.messages if line.startswith("skipped: ")]
    assert [line[len("skipped: ")] for line in skipped] == ["1", "2", "3", "4"]
    assert "4.0 pixels" in skipped[0]
    assert (len(good), side) == (5, 56)
    with pytest.raises(UserError, match=r"--data: 4 of 7 "):
        usable(pairs[:7], 32)
    assert MAX_SHIFT < 4


def test_better_weights_are_the_result_and_a_stopped_call_goes_on(here, start, monkeypatch):
    call = ["--data", "my pairs", "-m", start, "-o", "mine"]
    call += ["--steps", "6", "--lr", "2e-3", *SMALL]
    step = Trainer.train_step

    def stopped(trainer, number):
        if number == 4:
            raise Interrupted("")
        step(trainer, number)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Trainer, "train_step", stopped)
        main(call)
    with pytest.raises(UserError, match=r"^-o mine: .*lr"):
        main([*call, "--lr", "1e-3"])
    assert main(call) == 0
    (before,), (after,) = (
        read_scores(Path(f"results/mine_{side}")) for side in ("before", "after")
    )
    assert after.mean()["psnr"] > before.mean()["psnr"]
    lists = [Path(f"experiments/mine_finetune/{part}.txt") for part in ("train", "held_out")]
    assert [len(path.read_text().splitlines()) for path in lists] == [4, 2]

    tuned = find_model("experiments/mine/mine.safetensors")
    ours = tuned.model.net_g.state_dict()
    for number in (3, 6):
        weights = find_model(f"mine@{number}").model.net_g.state_dict()
        assert all(torch.equal(ours[key], weights[key]) for key in ours) == (number == 6)
    assert tuned.licence == "CC0"
    (row,) = tuned.scores
    assert row["restored"] == after.mean()
    # A third call has nothing left to do.
    model = Path("experiments/mine/models/mine_6.safetensors")
    changed = model.stat().st_mtime_ns
    assert main(call) == 0
    assert model.stat().st_mtime_ns == changed


def test_worse_weights_are_no_result(here, start):
    call = ["--data", "my pairs", "-m", start, "-o", "mine", "--steps", "2"]
    assert main([*call, "--lr", "0.3", *SMALL]) == 1
    assert not list(Path("experiments/mine").glob("*.safetensors"))
    assert find_model("mine").step == 2
    asked = json.loads(Path("experiments/mine_finetune/arguments.json").read_text())
    assert asked["lr"] == 0.3


def test_mistakes_are_named_before_anything_is_written(here, start):
    for arguments, place in {
        ("--data", "nothing"): r"^--data: .*nothing",
        ("-m", "nothing"): r"^nothing: ",
        ("--lr", "0"): r"^--lr 0",
        ("-o", "../mine"): r"^name: '\.\./mine'",
        ("--force_yml", "train:stepps=1"): r"train\.stepps",
    }.items():
        with pytest.raises(UserError, match=place):
            main(["--data", "my pairs", "-m", start, "-o", "mine", *arguments])
    Path("experiments/mine").mkdir(parents=True)
    with pytest.raises(UserError, match="^-o mine"):
        main(["--data", "my pairs", "-m", start, "-o", "mine"])
    assert [path.name for path in Path("experiments").iterdir()] == ["mine"]
