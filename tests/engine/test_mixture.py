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
    own = {key: first.pop(key) for key in ("type", "dataroot_lq", "dataroot_gt")}
    second = {
        "type": own["type"],
        **{f"dataroot_{side}": str(folder / "deep" / part)
           for side, part in (("lq", "input"), ("gt", "target"))},
    }  # fmt: skip
    options["datasets"]["train"] = {
        **first,
        "small": {**own, "weight": weights[0]},
        "deep": {**second, "weight": weights[1]},
    }
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
    options["datasets"]["train"]["num_worker_per_gpu"] = 2
    trainer = Trainer(parse_options(copy.deepcopy(options)), ALONE)
    trainer.total_iter = 3
    trainer.run()
    options["datasets"]["train"]["num_worker_per_gpu"] = 0
    for key, tensor in parameters(train(options, auto_resume=True)).items():
        assert torch.equal(tensor, whole[1][key]), key
    log = (tmp_path / "experiments/tiny_S1").glob("*.log")
    assert [counted(text.read_text()) for text in sorted(log)][-1][-1] == counted(whole[2])[-1]


def counted(log):
    return [line.partition("so far: ")[2] for line in log.splitlines() if "so far: " in line]


def test_the_log_says_how_many_samples_of_each_set_went_in(whole):
    """Steps of 2, 2, 1 and 1 samples at weights 2 : 1."""
    assert counted(whole[2]) == [
        "datasets.train.small 3, datasets.train.deep 1",
        "datasets.train.small 4, datasets.train.deep 2",
    ]
    assert "datasets.train.deep: 2 pairs, weight 1, 2 of 6 samples" in whole[2]


def test_a_batch_of_two_bit_depths_has_the_pixels_of_both(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    batch = next(Trainer(parse_options(mixed_options(folder, (1, 1))), ALONE).batches)
    names = {name.partition("/")[0] for name in batch["name"]}
    assert names == {"train.small", "train.deep"}
    assert batch["lq"].shape == batch["gt"].shape == (2, 3, 16, 16)
    assert 0.2 < batch["gt"].mean(dim=(1, 2, 3)).min() <= batch["gt"].max() <= 1


def test_items_are_those_of_the_sets(folder):
    mixture = build_training_set(section(mixed_options(folder)))
    assert len(mixture) == 5
    for index, name in ((2, "train.small/scene-002"), (3, "train.deep/scene-000")):
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
    options["datasets"]["train"]["deep"] = {
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
    found = {name.partition("/")[0] for batch in alone for name in batch["name"]}
    assert found == {"train.small", "train.deep"}


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
    assert sets.count("train.small") == sets.count("train.deep") == 3


def test_a_set_of_weight_0_is_not_even_opened(folder):
    options = mixed_options(folder, (0, 0.5))
    options["datasets"]["train"]["small"]["dataroot_lq"] = "nowhere"
    mixture = build_training_set(section(options))
    assert [part.label for part in mixture.sections] == ["datasets.train.deep"]
    assert mixture.shares.counts(7) == [7]


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("deep.gt_size", 16, r"deep\.gt_size: .*move it to datasets\.train"),
        ("deep.mean", [0, 0, 0], r"deep\.mean: "),
        ("deep.wieght", 1, r"deep\.wieght: "),
        ("deep.weight", -1, r"deep\.weight: "),
        ("small.weight", "1", r"small\.weight: "),
        ("small", {"type": "PairedImageIRDatasett"}, r"small\.type: .*'PairedImageIRDataset'"),
        ("small", {"weight": 1}, r"small: .*sets are deep"),
        ("deep.dataroot_lq", "/no", r"deep\.dataroot_lq: "),
        ("deep.dataroot_gt", None, r"deep\.dataroot_gt: "),
        ("gt_size", 24, r"gt_size: "),
        ("weight", 2, r"weight: "),
    ],
)
def test_a_mistake_in_a_mixture_is_named_with_its_place(folder, key, value, place):
    options = mixed_options(folder)
    section = options["datasets"]["train"]
    *outer, last = key.split(".")
    for name in outer:
        section = section[name]
    section[last] = value
    with pytest.raises(UserError, match=rf"^datasets\.train\.{place}"):
        Trainer(parse_options(options), ALONE)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ([{"type": "PairedImageIRDataset"}], r"datasets\.train: expected .*names"),
        ({"gt_size": 32}, r"datasets\.train\.type: "),
        ({"type": "PairedImageIRDataset", "weight": 1}, r"datasets\.train\.weight: "),
        ({"a": {"type": "PairedImageIRDataset", "weight": 0}}, r"datasets\.train: .*weight is 0"),
    ],
)
def test_what_is_no_mixture_is_refused(folder, content, place):
    options = mixed_options(folder)
    options["datasets"]["train"] = content
    with pytest.raises(UserError, match=f"^{place}"):
        parse_options(options)


def test_the_command_line_and_a_base_reach_into_a_mixture(folder, tmp_path):
    path = write_yaml(tmp_path / "T.yml", mixed_options(folder))
    options = load_options(path, ["datasets:train:deep:weight=5", "datasets.train.timeout=9"])
    data = options.for_training()[1]
    assert ([entry.weight for entry in data.mixture], data.timeout) == ([2, 5], 9)
    with pytest.raises(UserError, match=r"^--force_yml: datasets\.train\.deep\.weight: "):
        load_options(path, ["datasets:train:deep:weight=-5"])
    (tmp_path / "U.yml").write_text(
        "base: T.yml\ndatasets: {train: {small: ~, deep: {weight: 3}}}\n"
    )
    data = load_options(tmp_path / "U.yml").for_training()[1]
    assert [(entry.name, entry.weight) for entry in data.mixture] == [("deep", 3)]
    (tmp_path / "V.yml").write_text("base: U.yml\ndatasets: {train: {deep: {weight: -1}}}\n")
    with pytest.raises(UserError, match=r"V\.yml: datasets\.train\.deep\.weight: "):
        load_options(tmp_path / "V.yml")


def test_pairs_that_moved_from_set_to_set_are_noticed(folder, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(whole[0])
    options = mixed_options(folder)
    first, second = (options["datasets"]["train"][key] for key in ("small", "deep"))
    make_pairs(tmp_path / "two", 2)
    make_pairs(tmp_path / "three", 3)
    for entry, name in ((first, "two"), (second, "three")):
        entry["dataroot_lq"] = str(tmp_path / name / "input")
        entry["dataroot_gt"] = str(tmp_path / name / "target")
    with pytest.raises(UserError, match=r"training pairs: \[3, 2\] → \[2, 3\]"):
        train(options, auto_resume=True)


def test_the_model_knows_what_it_was_trained_on(whole, monkeypatch):
    monkeypatch.chdir(whole[0])
    data = find_model("tiny_S1").data
    assert [part["weight"] for part in data.values()] == [2, 1]
    assert data["deep"]["dataroot_lq"].endswith("deep/input")


def test_checking_an_option_file_looks_at_every_set(folder, tmp_path):
    options = mixed_options(folder)
    photographs = {"type": "SyntheticBlurDataset", "dataroot_gt": ["a", "b"]}
    options["datasets"]["train"]["photographs"] = photographs
    sources = dataset_folders(write_yaml(tmp_path / "T.yml", options))
    assert [(source.name, source.lq[-10:], source.patch_size) for source in sources] == [
        ("datasets.train.small", "rain/input", 32),
        ("datasets.train.deep", "deep/input", 32),
        ("datasets.train.photographs", "a", 32),
        ("datasets.train.photographs", "b", 32),
    ]
