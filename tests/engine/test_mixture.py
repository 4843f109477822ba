"""Training on a mixture of data sets."""

import copy
import dataclasses
import shutil

import cv2
import numpy as np
import pytest
import torch
from small_data import make_pairs, train_options, write_yaml
from small_training import ALONE, parameters, train

from hidiff import UserError
from hidiff.data import (
    BatchPlan,
    CropRequest,
    PhaseBatchSampler,
    build_training_set,
    training_batches,
)
from hidiff.engine.trainer import Trainer
from hidiff.options import load_options, parse_options
from hidiff.prepare.check import dataset_folders
from hidiff.weights.find import find_model


def mixed_options(folder, weights=(2, 1), **changes):
    """`small`, 3 pairs of 8 bits, and `deep`, 2 of another size and 16 bits."""
    options = train_options(folder, 1, ema_decay=0.9, **changes)
    first = options["datasets"]["train"]
    del options["datasets"]["val"]
    second = {
        "type": first["type"],
        "name": "deep",
        **{f"dataroot_{side}": str(folder / "deep" / part)
           for side, part in (("lq", "input"), ("gt", "target"))},
    }  # fmt: skip
    options["datasets"]["train"] = [{**first, "name": "small"}, second]
    for entry, weight in zip(options["datasets"]["train"], weights, strict=True):
        entry["weight"] = weight
    return options


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    make_pairs(folder / "train", 3)
    make_pairs(folder / "deep", 2, height=56, width=40)
    for path in (folder / "deep").rglob("*.png"):
        assert cv2.imwrite(str(path), cv2.imread(str(path)).astype(np.uint16) * 257)
    return folder


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The weights after 4 steps, and the log."""
    place = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        trainer = train(mixed_options(folder))
    log = next((place / "experiments/tiny_S1").glob("*.log")).read_text()
    return place, parameters(trainer), log


def section(options):
    return parse_options(copy.deepcopy(options)).for_training()[1]


def test_resuming_ends_where_an_uninterrupted_run_ends(folder, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = mixed_options(folder)
    options["datasets"]["train"][0]["num_worker_per_gpu"] = 2
    trainer = Trainer(parse_options(copy.deepcopy(options)), ALONE)
    trainer.total_iter = 3
    trainer.run()
    options["datasets"]["train"][0]["num_worker_per_gpu"] = 0
    for key, tensor in parameters(train(options, auto_resume=True)).items():
        assert torch.equal(tensor, whole[1][key]), key
    log = (tmp_path / "experiments/tiny_S1").glob("*.log")
    assert [counted(text.read_text()) for text in sorted(log)][-1][-1] == counted(whole[2])[-1]


def counted(log):
    return [line.partition("so far: ")[2] for line in log.splitlines() if "so far: " in line]


def test_the_log_says_how_many_samples_of_each_set_went_in(whole):
    """Steps of 2, 2, 1 and 1 samples at weights 2 : 1."""
    assert counted(whole[2]) == [
        "datasets.train[0] (small) 3, datasets.train[1] (deep) 1",
        "datasets.train[0] (small) 4, datasets.train[1] (deep) 2",
    ]
    assert "(deep): 2 pairs, weight 1, 2 of 6 samples" in whole[2]


def test_a_batch_of_two_bit_depths_has_the_pixels_of_both(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    batch = next(Trainer(parse_options(mixed_options(folder, (1, 1))), ALONE).batches)
    names = {name.partition("/")[0] for name in batch["name"]}
    assert names == {"train[0]", "train[1]"}
    assert batch["lq"].shape == batch["gt"].shape == (2, 3, 16, 16)
    assert 0.2 < batch["gt"].mean(dim=(1, 2, 3)).min() <= batch["gt"].max() <= 1


def test_items_are_those_of_the_sets(folder):
    mixture = build_training_set(section(mixed_options(folder)))
    assert len(mixture) == 5
    for index, name in ((2, "train[0]/scene-002"), (3, "train[1]/scene-000")):
        part = mixture.sets[index // 3]
        request = CropRequest(index, 16, 32, (1, 2, 3))
        item, own = mixture[request], part[dataclasses.replace(request, index=index % 3)]
        assert item["name"] == mixture.pairs[index].name == name
        assert torch.equal(item["lq"], own["lq"])
        assert torch.equal(item["gt"], own["gt"])


@pytest.mark.parametrize("workers", [1, 2])
def test_blur_made_on_the_fly_mixes_with_pairs(folder, workers):
    """The same batches from any number of processes, and from the middle on."""
    options = mixed_options(folder)
    options["datasets"]["train"][1] = {
        "type": "SyntheticBlurDataset",
        "dataroot_gt": [str(folder / "train" / "target"), str(folder / "deep" / "target")],
        "min_size": 32,
    }
    data = section(options)
    mixture = build_training_set(data)

    def batches(workers, first_step):
        plan = BatchPlan(data.phases(4), 1)
        sampler = PhaseBatchSampler(
            size=len(mixture), shares=mixture.shares, plan=plan, rank=0, seed=3, crop_size=32,
            total_iter=4, first_step=first_step,
        )  # fmt: skip
        return list(training_batches(mixture, sampler, num_workers=workers))

    alone, others = batches(0, 1), batches(workers, 3)
    assert len(others) == 2
    for batch, other in zip(alone[2:], others, strict=True):
        assert batch["name"] == other["name"]
        assert torch.equal(batch["lq"], other["lq"])
        assert torch.equal(batch["gt"], other["gt"])
    assert {name.partition("/")[0] for b in alone for name in b["name"]} == {"train[0]", "train[1]"}


def test_a_bad_image_is_replaced_by_one_of_its_own_set(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "train", tmp_path / "data/train")
    shutil.copytree(folder / "deep", tmp_path / "data/deep")
    (tmp_path / "data/train/input/scene-002.png").write_bytes(b"")
    options = mixed_options(tmp_path / "data", (1, 1), on_bad_image="skip")
    trainer = Trainer(parse_options(options), ALONE)
    batches = [next(trainer.batches) for _ in range(4)]
    assert [notice for batch in batches for notice in batch["notices"]]
    sets = [name.partition("/")[0] for batch in batches for name in batch["name"]]
    assert sets.count("train[0]") == sets.count("train[1]") == 3


def test_a_set_of_weight_0_is_not_even_opened(folder):
    options = mixed_options(folder, (0, 0.5))
    options["datasets"]["train"][0]["dataroot_lq"] = "nowhere"
    mixture = build_training_set(section(options))
    assert [part.label for part in mixture.sections] == ["datasets.train[1] (deep)"]
    assert mixture.shares.counts(7) == [7]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda sets: sets[1].update(gt_size=16), r"datasets\.train\[1\]\.gt_size: .*train\[0\]"),
        (lambda sets: sets[1].update(mean=[0, 0, 0]), r"datasets\.train\[1\]\.mean: "),
        (lambda sets: sets[1].update(wieght=1), r"datasets\.train\[1\]\.wieght: "),
        (lambda sets: sets[1].update(weight=-1), r"datasets\.train\[1\]\.weight: "),
        (lambda sets: sets[0].update(weight="1"), r"datasets\.train\[0\]\.weight: .*quotes"),
        (lambda sets: [s.update(weight=0) for s in sets], r"datasets\.train: .*weight is 0"),
        (lambda sets: sets.clear(), r"datasets\.train: .*\[\]"),
        (lambda sets: sets.append(5), r"datasets\.train\[2\]: .*got 5"),
        (lambda sets: sets[1].update(dataroot_lq="/no"), r"datasets\.train\[1\]\.dataroot_lq: "),
        (lambda sets: sets[1].pop("dataroot_gt"), r"datasets\.train\[1\]\.dataroot_gt: "),
        (lambda sets: sets[0].update(gt_size=24), r"datasets\.train\[0\]\.gt_size: "),
    ],
)
def test_a_mistake_in_a_mixture_is_named_with_its_place(folder, change, place):
    options = mixed_options(folder)
    change(options["datasets"]["train"])
    with pytest.raises(UserError, match=f"^{place}"):
        Trainer(parse_options(options), ALONE)


def test_the_command_line_reaches_into_a_mixture(folder, tmp_path):
    path = write_yaml(tmp_path / "T.yml", mixed_options(folder))
    options = load_options(path, ["datasets:train[1]:weight=5", "datasets.train[0].timeout=9"])
    data = options.for_training()[1]
    assert ([entry.weight for entry in data.mixture], data.timeout) == ([2, 5], 9)
    for override, place in (
        ("datasets:train:timeout=9", r"^--force_yml datasets:train:timeout=9: .*train\[0\]"),
        ("datasets:train[2]:weight=1", r"^--force_yml .*'train' has no section \[2\]"),
        ("datasets:train[1]:weight=-5", r"^--force_yml: datasets\.train\[1\]\.weight: "),
        ("datasets:train[1]:weight:a=5", r"'weight' is an option"),
    ):
        with pytest.raises(UserError, match=place):
            load_options(path, [override])
    path = write_yaml(tmp_path / "U.yml", mixed_options(folder, (1, -1)))
    with pytest.raises(UserError, match=r"U\.yml: datasets\.train\[1\]\.weight: "):
        load_options(path, ["datasets:train[0]:weight=5"])


def test_a_single_section_has_no_weight(folder):
    options = train_options(folder, 1)
    options["datasets"]["train"]["weight"] = 1
    with pytest.raises(UserError, match=r"^datasets\.train\.weight: "):
        parse_options(options)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda sets: sets[1].update(weight=3), r"train\[1\]\.weight: 1 → 3"),
        (lambda sets: sets.pop(), r"train\[1\]\.weight: 1 → absent"),
    ],
)
def test_resuming_another_mixture_is_refused(folder, whole, monkeypatch, change, place):
    monkeypatch.chdir(whole[0])
    options = mixed_options(folder)
    change(options["datasets"]["train"])
    with pytest.raises(UserError, match=place):
        train(options, auto_resume=True)


def test_pairs_that_moved_from_set_to_set_are_noticed(folder, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(whole[0])
    options = mixed_options(folder)
    first, second = options["datasets"]["train"]
    make_pairs(tmp_path / "two", 2)
    make_pairs(tmp_path / "three", 3)
    for entry, name in ((first, "two"), (second, "three")):
        entry["dataroot_lq"] = str(tmp_path / name / "input")
        entry["dataroot_gt"] = str(tmp_path / name / "target")
    with pytest.raises(UserError, match=r"\[3, 2\] training pairs, this run has \[2, 3\]"):
        train(options, auto_resume=True)


def test_the_model_knows_what_it_was_trained_on(whole, monkeypatch):
    monkeypatch.chdir(whole[0])
    data = find_model("tiny_S1").data
    assert [part["weight"] for part in data.values()] == [2, 1]
    assert data["train[1] (deep)"]["dataroot_lq"].endswith("deep/input")


def test_checking_an_option_file_looks_at_every_set(folder, tmp_path):
    options = mixed_options(folder)
    photographs = {"type": "SyntheticBlurDataset", "dataroot_gt": ["a", "b"]}
    options["datasets"]["train"].append(photographs)
    sources = dataset_folders(write_yaml(tmp_path / "T.yml", options))
    assert [(source.name, source.lq[-10:], source.patch_size) for source in sources] == [
        ("datasets.train[0] (small)", "rain/input", 32),
        ("datasets.train[1] (deep)", "deep/input", 32),
        ("datasets.train[2]", "a", 32),
        ("datasets.train[2]", "b", 32),
    ]
