"""Fine-tuning: the pairs of a folder, the training, and a result that is better or none."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from small_data import picture, train_options, write_rgb

from hidiff import UserError
from hidiff.cli import call
from hidiff.data import pairs as data_pairs
from hidiff.data.image import read_image
from hidiff.engine.trainer import Trainer
from hidiff.models import build_model
from hidiff.options import parse_options
from hidiff.report.finetune_pairs import MAX_SHIFT, find_pairs, shift, split, usable
from hidiff.utils.errors import Interrupted
from hidiff.weights.export import pack
from hidiff.weights.find import FoundModel, find_model


def main(arguments):
    return call("finetune", *map(str, arguments))


SMALL = [
    "--force_yml",
    "datasets:train:num_worker_per_gpu=0",
    "datasets:train:batch_size_per_gpu=2",
    "logger:save_checkpoint_freq=3",
    "logger:use_tb_logger=false",
]


def make_pair(folder, name, seed, sides=("input", "target"), moved=0, height=56, width=64):
    """A picture and the same blurred, and `moved` to the right by pixels."""
    sharp = picture(seed, height, width + 32)
    blurry = cv2.blur(sharp, (5, 5))[:, 16 - moved :][:, :width]
    write_rgb(folder / sides[0] / f"{name}.png", blurry)
    write_rgb(folder / sides[1] / f"{name}.png", sharp[:, 16 : 16 + width])


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A file packed for training, of weights that nobody has trained."""
    path = tmp_path_factory.mktemp("start") / "start.safetensors"
    torch.manual_seed(1)
    sections = parse_options(train_options(Path("data"), 2)).sections
    model = build_model(sections)
    used = {k: v for k, v in sections.items() if k.startswith(("network_", "model_", "diff"))}
    pack(FoundModel("start", "start", model, used, patch_size=32, licence="CC0"), path)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for scene in "abc":
        for number in range(2):
            make_pair(Path("my pairs"), f"{scene} ({number})", ord(scene) + number)
    return tmp_path


@pytest.mark.parametrize(
    "sides", [("input", "target"), ("blur", "sharp"), ("lq", "gt")], ids=lambda sides: sides[0]
)
def test_pairs_and_scenes_are_found_in_every_layout(tmp_path, sides):
    make_pair(tmp_path / "flat", "x-1", 1, sides)
    make_pair(tmp_path / "flat", "y_12", 2, sides)
    for scene in ("dark", "light"):
        make_pair(tmp_path / "inside", f"{scene}/1", 1, sides)
        make_pair(tmp_path / "above" / scene, "1", 1, sides)
    make_pair(tmp_path / "parts/train", "x-1", 1, sides)
    make_pair(tmp_path / "parts/test/dark", "1", 1, sides)
    for layout, expected in {
        "flat": [("x", False), ("y", False)],
        "inside": [("dark", False), ("light", False)],
        "above": [("dark", False), ("light", False)],
        "parts": [("dark", True), ("x", False)],
    }.items():
        pairs = find_pairs(tmp_path / layout)
        assert [(pair.scene, pair.test) for pair in pairs] == expected
        assert all(p.lq.name == p.gt.name and sides[0] in p.lq.parts for p in pairs)
    with pytest.raises(UserError, match=r"^--data: .*flat/input|lq|blur.* has no pairs"):
        find_pairs(tmp_path / "flat" / sides[0])
    (tmp_path / "flat" / sides[1] / "x-1.png").unlink()
    with pytest.raises(UserError, match="x-1"):
        find_pairs(tmp_path / "flat")


def test_whole_scenes_are_held_out(here):
    pairs = find_pairs(Path("my pairs"))
    choices = set()
    for seed in range(20):
        train, held_out = split(pairs, test=[], held_out=None, seed=seed)
        assert split(pairs, test=[], held_out=None, seed=seed) == (train, held_out)
        scenes = [{pair.scene for pair in part} for part in (train, held_out)]
        assert len(scenes[1]) == 1 and not scenes[0] & scenes[1]
        assert sorted(train + held_out, key=pairs.index) == pairs
        choices |= scenes[1]
    assert len(choices) == 3
    for test in (["b"], ["b (0)", "b (1)"]):
        _, held_out = split(pairs, test=test, held_out=None, seed=0)
        assert [pair.lq.stem for pair in held_out] == ["b (0)", "b (1)"]
    assert split(pairs, test=[], held_out=1, seed=0)[1] == pairs[-1:]
    for wrong in ({"test": ["d"]}, {"held_out": 6}, {"test": list("abc")}):
        with pytest.raises(UserError, match=r"^--test: .*'d'|^--data: all"):
            split(pairs, **{"test": [], "held_out": None, "seed": 0, **wrong})
    with pytest.raises(UserError, match=r"^--data: .*--held_out"):
        split(pairs[:2], test=[], held_out=None, seed=0)
    make_pair(Path("my pairs/test"), "a-1", 1)
    pairs = find_pairs(Path("my pairs"))
    assert split(pairs, test=[], held_out=None, seed=0)[1] == [p for p in pairs if p.test]
    with pytest.raises(UserError, match="--held_out"):
        split(pairs, test=[], held_out=1, seed=0)


@pytest.mark.parametrize("size", [(56, 64), (130, 620)])
def test_the_shift_is_that_in_pixels(tmp_path, size):
    for moved in (0, 1, 4):
        make_pair(tmp_path, "0", 1, moved=moved, height=size[0], width=size[1])
        found = shift(*(read_image(tmp_path / side / "0.png") for side in ("input", "target")))
        assert found == pytest.approx(moved, abs=0.4)
    black = np.zeros((40, 40, 3), np.uint8)
    assert shift(black, black) is None


def test_what_is_no_pair_is_named(tmp_path):
    for index in range(9):
        make_pair(tmp_path, str(index), index, moved=4 * (index == 1))
    make_pair(tmp_path, "2", 2, height=24)
    write_rgb(tmp_path / "target/3.png", picture(3, 56, 60))
    (tmp_path / "input/4.png").write_bytes(b"no image")
    pairs = find_pairs(tmp_path)
    good, left_out, side = usable(pairs, 32)
    assert [Path(name).stem for name in left_out] == ["1", "2", "3", "4"]
    assert f"{left_out[str(tmp_path / 'input/1.png')]}".split()[4].startswith("4.")
    assert (len(good), side) == (5, 56)
    with pytest.raises(UserError, match=r"--data: 4 of 7 .*3\.png"):
        usable(pairs[:7], 32)
    assert MAX_SHIFT < 4


def test_better_weights_are_the_result_and_a_stopped_call_goes_on(here, start, monkeypatch, capsys):
    call = ["--data", "my pairs", "--weights", str(start), "-o", "mine"]
    call += ["--steps", "6", "--lr", "2e-3", *SMALL]
    step = Trainer.train_step

    def stopped(trainer, number):
        if number == 4:
            raise Interrupted("")
        step(trainer, number)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Trainer, "train_step", stopped)
        main(call)
    record = Path("experiments/mine_finetune/finetune.json")
    assert "better" not in json.loads(record.read_text())
    with pytest.raises(UserError, match=r"^-o mine: .*lr"):
        main([*call, "--lr", "1e-3"])
    assert main(call) == 0
    found = json.loads(record.read_text())
    assert found["better"] and found["after"]["psnr"] > found["before"]["psnr"]
    assert found["pairs"] == {"train": 4, "held_out": 2}
    assert not set(found["scenes"]["train"]) & set(found["scenes"]["held_out"])

    tuned = find_model("experiments/mine/mine.safetensors")
    for step in (3, 6):
        weights = find_model(f"mine@{step}").model.net_g.state_dict()
        ours = tuned.model.net_g.state_dict()
        assert all(torch.equal(ours[key], weights[key]) for key in ours) == (step == 6)
    assert tuned.licence == "CC0"
    (row,) = tuned.scores
    assert row["restored"] == found["after"]
    table = (record.parent / "finetune.md").read_text().splitlines()
    assert len(table) == 7 and f"{found['after']['psnr']:.4f}" in table[-1]
    # A third call has nothing left to do.
    changed = record.parent.parent.joinpath("mine/models/net_g_latest.pth").stat().st_mtime_ns
    assert main(call) == 0
    assert Path("experiments/mine/models/net_g_latest.pth").stat().st_mtime_ns == changed


def test_worse_weights_are_no_result(here, start):
    Path("results/mine_before").mkdir(parents=True)  # of a call whose experiment was removed
    call = ["--data", "my pairs", "--weights", str(start), "-o", "mine", "--steps", "2"]
    assert main([*call, "--lr", "3", *SMALL]) == 1
    found = json.loads(Path("experiments/mine_finetune/finetune.json").read_text())
    assert not found["better"]
    assert found["after"].get("psnr", 0) < found["before"]["psnr"]
    assert not list(Path("experiments/mine").glob("*.safetensors"))
    assert find_model("mine").step == 2


def test_mistakes_are_named_before_anything_is_written(here, start):
    for arguments, place in {
        ("--data", "nothing"): r"^--data: nothing",
        ("--weights", "nothing"): r"^nothing: ",
        ("--steps", "0"): r"^--steps 0",
        ("--lr", "0"): r"^--lr 0",
        ("-o", "../mine"): r"^name: '\.\./mine'",
        ("--force_yml", "train:stepps=1"): r"^train\.stepps",
    }.items():
        with pytest.raises(UserError, match=place):
            main(["--data", "my pairs", "--weights", str(start), "-o", "mine", *arguments])
    Path("experiments/mine").mkdir(parents=True)
    with pytest.raises(UserError, match="^-o mine"):
        main(["--data", "my pairs", "--weights", str(start), "-o", "mine"])
    assert [path.name for path in Path("experiments").iterdir()] == ["mine"]


def test_names_with_spaces_stand_in_a_list(here):
    Path("list.txt").write_text("target/a (0).png\tinput/a (0).png\n")
    (pair,) = data_pairs.find_pairs(lists="list.txt", blurry="my pairs", sharp="my pairs").pairs
    assert Path(pair.lq) == Path("my pairs/input/a (0).png")
    assert Path(pair.gt) == Path("my pairs/target/a (0).png")
