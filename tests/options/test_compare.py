"""What may change when a training is resumed, and what decides the scores of a test."""

import copy

import pytest
from golden_values import load_json

from hidiff.archs import Transformer
from hidiff.losses.pixel import L1Loss
from hidiff.options import compare_options, parse_options, score_options
from hidiff.options.datasets import DatasetOptions
from hidiff.options.sections import Options
from hidiff.registry import arguments_model, inner_model

RELEASED = load_json("released_options.json")


@pytest.fixture
def content():
    return copy.deepcopy(RELEASED["train/GoPro_S2.yml"]["options"])


def sections(content):
    return parse_options(copy.deepcopy(content)).sections


def test_changes_are_told_apart_by_the_marks_of_the_fields(content):
    before = sections(content)
    content["logger"]["print_freq"] = 7
    content["datasets"]["train"] |= {"num_worker_per_gpu": 2, "cache": "folder"}
    # What is said and what is left out may be the same.
    content["train"] |= {"precision": "tf32", "compile": False, "activation_checkpointing": []}
    deciding, harmless = compare_options(before, sections(content))
    assert deciding == []
    assert [line.partition(": ")[0] for line in harmless] == [
        "datasets.train.cache",
        "datasets.train.num_worker_per_gpu",
        "logger.print_freq",
    ]
    assert harmless[2] == f"logger.print_freq: {before['logger']['print_freq']} → 7"
    content["train"] |= {"precision": "bf16", "warmup_iter": 3, "compile": True}
    content["train"]["optim_total"]["lr"] = 1.0
    content["network_g"]["bias"] = True
    content["datasets"]["train"]["gt_size"] = 400
    deciding, _ = compare_options(before, sections(content))
    assert [line.partition(": ")[0] for line in deciding] == [
        "datasets.train.gt_size",
        "network_g.bias",
        "train.optim_total.lr",
        "train.precision",
        "train.warmup_iter",
    ]


def test_sets_that_come_and_go_decide(content):
    own = {"type": "PairedImageIRDataset", "dataroot_gt": "a", "dataroot_lq": "b"}
    train = {
        key: value
        for key, value in content["datasets"]["train"].items()
        if key in ("gt_size", "batch_size_per_gpu")
    }
    content["datasets"]["train"] = {**train, "one": own, "two": own}
    before = sections(content)
    content["datasets"]["train"]["one"] = {**own, "dataroot_gt": "elsewhere"}
    assert compare_options(before, sections(content))[0] == []
    content["datasets"]["train"]["two"] = {**own, "weight": 3}
    assert compare_options(before, sections(content))[0] == ["datasets.train.two.weight: 1 → 3"]
    del content["datasets"]["train"]["two"]
    assert "datasets.train.two.weight: 1 → absent" in compare_options(before, sections(content))[0]


@pytest.mark.parametrize(
    ("class_", "option", "path"),
    [(Transformer, "num_refinement_blocks", "network_g"), (L1Loss, "reduction", "train.pixel_opt")],
)
def test_a_changed_default_is_noticed(content, monkeypatch, class_, option, path):
    content["train"]["pixel_opt"] = {"type": "L1Loss"}
    content["network_g"].pop(option, None)
    before = sections(content)
    other = {"num_refinement_blocks": 3, "reduction": "sum"}[option]
    defaults = {**class_.__init__.__kwdefaults__, option: other}
    monkeypatch.setattr(class_.__init__, "__kwdefaults__", defaults)
    arguments_model.cache_clear()
    try:
        deciding, _ = compare_options(before, sections(content))
    finally:
        arguments_model.cache_clear()
    assert [line.partition(": ")[0] for line in deciding] == [f"{path}.{option}"]


def test_what_decides_the_scores_of_a_test():
    found = score_options(sections(RELEASED["test/GoPro.yml"]["options"]))
    for place in (
        "network_g.dim",
        "datasets.test_1.dataroot_gt",
        "val.precision",
        "val.local.size",
        "diffusion_schedule.timesteps",
    ):
        assert place in found, place
    for place in found:
        assert not place.startswith(
            ("name", "train", "path", "logger", "dist_params", "datasets.train")
        )
        assert place.rpartition(".")[2] not in ("num_worker_per_gpu", "cache", "val_freq", "pbar")


def test_every_field_has_its_meaning_and_marks():
    """The reference in the documents and the comparison on resume are made of them."""
    models = [Options, DatasetOptions]
    for model in models:
        for name, field in model.model_fields.items():
            if name in ("sections", "notices", "overrides", "file"):
                continue
            assert field.description, name
            assert set(field.json_schema_extra) == {"resume_safe", "affects_scores"}
            inner = inner_model(model, name)
            if inner is not None and inner not in models:
                models.append(inner)
    assert len(models) == 9
