"""Studies of option files that differ in data, stages and test sets, on tiny networks."""

import copy
import csv
import json
import shutil
import statistics
from pathlib import Path

import pytest
from small_data import train_options, write_yaml

from hidiff import UserError
from hidiff.cli import call
from hidiff.report.ablation import plan
from hidiff.report.ablation_changes import Changes


def main(arguments):
    return call("ablation", *map(str, arguments))


PAIRED = "PairedImageIRDataset"


def folder(data, part):
    return {f"dataroot_{s}": str(data / part / n) for s, n in (("lq", "input"), ("gt", "target"))}


def stage(data, number, *, mixed=False, tests=("held_out", "seen")):
    """A training of one step; tests on two sets of different pairs."""
    options = train_options(data, number, total_iter=1)
    options["logger"]["use_tb_logger"] = False
    train = options["datasets"]["train"] | {"gt_size": 16, "name": "photos"}
    for key in ("mini_batch_sizes", "iters", "gt_sizes"):
        del train[key]
    other = {"name": "frames", "type": PAIRED, "weight": 3, **folder(data, "test")}
    sets = {"train": [train, other] if mixed else train}
    for index, name in enumerate(tests):
        part = {"held_out": "test", "seen": "train"}[name]
        sets[f"test_{index + 1}"] = {"name": name, "type": PAIRED, **folder(data, part)}
    options["datasets"] = sets
    options["val"]["save_img"] = False
    options["val"]["metrics"]["ssim"] = {"type": "calculate_ssim"}
    options["name"] = f"tiny_{'mixed_' if mixed else ''}S{number}"
    return options


def baseline(data):
    options = stage(data, 1, mixed=True, tests=("held_out",))
    del options["network_le"]
    options["network_g"]["guidance"] = "none"
    return options | {"name": "plain", "model_type": "Restormer"}


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    """A stage 1 without test sets, its stage 2 with two, and a single stage with one of them."""
    root = tmp_path_factory.mktemp("study")
    files = [
        write_yaml(root / "S1.yml", stage(data, 1, tests=())),
        write_yaml(root / "S2.yml", stage(data, 2)),
        write_yaml(root / "plain.yml", baseline(data)),
    ]
    call = [*map(str, files), "--seeds", "0", "1", "--output", str(root / "out")]
    assert main(call) == 0
    return root / "out", call


def means(output, run, dataset, column):
    with (output / "results" / run / "scores.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"] == dataset]
    assert rows
    return statistics.fmean(float(row[column]) for row in rows)


def test_each_test_set_has_its_columns_and_each_file_its_training_set(done):
    output, _ = done
    lines = (output / "ablation.md").read_text().splitlines()
    header, _, *rows = ([c.strip() for c in x.split("|")[1:-1]] for x in lines if x[:1] == "|")
    assert [row[0] for row in rows] == ["blurry input", "plain", "S2"]
    table = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert table["plain"]["trained on"] == "1 × photos, 3 × frames"
    assert table["S2"]["trained on"] == "photos"
    for dataset in ("held_out", "seen"):
        for metric, title, digits in (("psnr", "PSNR (dB)", 3), ("ssim", "SSIM", 4)):
            column = f"{dataset}: {title}"
            of_blurry = means(output, "tiny_S2_seed0", dataset, f"blurry_{metric}")
            assert table["blurry input"][column] == f"{of_blurry:.{digits}f}"
            for label, run in (("S2", "tiny_S2"), ("plain", "plain")):
                if (label, dataset) == ("plain", "seen"):
                    assert table[label][column] == ""
                    continue
                a, b = (means(output, f"{run}_seed{seed}", dataset, metric) for seed in (0, 1))
                spread = abs(a - b) / 2**0.5  # of two values
                assert table[label][column] == f"{(a + b) / 2:.{digits}f} ± {spread:.{digits}f}"
    assert not list(output.glob("*.png"))


def test_a_stage_1_without_test_sets_is_trained_only(done):
    output, _ = done
    assert (output / "experiments/tiny_S1_seed0/training_states/1.state").is_file()
    assert not list((output / "results").glob("tiny_S1*"))
    assert {row["label"] for row in json.loads((output / "ablation.json").read_text())} == {
        "S2",
        "plain",
    }


def test_a_second_call_does_what_is_missing(done):
    output, call = done

    def times():
        files = [p for d in ("experiments", "results") for p in (output / d).rglob("*")]
        return {p: p.stat().st_mtime_ns for p in files if p.is_file()}

    before, table = times(), (output / "ablation.md").read_text()
    shutil.rmtree(output / "results/plain_seed1")
    assert main(call) == 0
    changed = {p for p, time in times().items() if before.get(p) != time}
    assert {p.relative_to(output).parts[:2] for p in changed} == {("results", "plain_seed1")}
    assert (output / "ablation.md").read_text() == table


def test_test_sets_of_one_name_must_be_one(tmp_path, data):
    first = write_yaml(tmp_path / "a.yml", baseline(data))
    for place, value in (("datasets", folder(data, "train")), ("val", {"protocol": "matlab"})):
        options = baseline(data) | {"name": "other"}
        section = options["datasets"]["test_1"] if place == "datasets" else options["val"]
        section |= value
        second = write_yaml(tmp_path / "b.yml", options)
        with pytest.raises(UserError, match=r"b\.yml: datasets\.test_1\.name: 'held_out'.*a\.yml"):
            plan([first, second], [0], Changes())


def test_only_what_needs_the_sharp_image_goes_without_test_sets(tmp_path, data):
    options = baseline(data)
    del options["datasets"]["test_1"]
    with pytest.raises(UserError, match=r"a\.yml: datasets: .*test_1"):
        plan([write_yaml(tmp_path / "a.yml", options)], [0], Changes())


def test_files_of_one_stem_go_by_their_names(tmp_path, data):
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files.append(write_yaml(tmp_path / name / "same.yml", baseline(data) | {"name": name}))
    assert [run.label for run in plan(files, [0], Changes())] == ["one", "two"]


def test_all_paths_of_data_hold_in_another_folder(tmp_path, data, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    options = baseline(data)
    own = {"name": "own", "type": "SyntheticBlurDataset", "dataroot_gt": ["a", "~/b"]}
    options["datasets"]["train"][0]["cache"] = "frames"
    options["datasets"]["train"].append(copy.deepcopy(own))
    (run,) = plan([write_yaml(tmp_path / "a.yml", options)], [0], Changes())
    first, _, own = run.content["datasets"]["train"]
    assert first["cache"] == str(tmp_path / "frames")
    assert own["dataroot_gt"] == [str(tmp_path / "a"), str(tmp_path / "home/b")]


def test_data_of_the_call_take_the_place_of_a_mixture(tmp_path, data):
    folders = {
        f"{part}_{side}": Path("elsewhere", part, side)
        for part in ("train", "test")
        for side in ("input", "target")
    }
    file = write_yaml(tmp_path / "a.yml", baseline(data))
    (run,) = plan([file], [0], Changes(data=folders))
    _, train = run.options.for_training()
    assert train.mixture == ()
    assert train.source["dataroot_lq"] == str(Path("elsewhere/train/input").absolute())
    assert (train.gt_size, train.batch_size_per_gpu) == (16, 2)
    (test,) = run.options.test_sets().values()
    assert test.source["dataroot_gt"] == str(Path("elsewhere/test/target").absolute())
