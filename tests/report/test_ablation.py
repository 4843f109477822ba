"""Planning, running and reporting an ablation, on tiny networks and a few steps."""

import csv
import json
import shutil
import statistics
from pathlib import Path

import cv2
import pytest
import yaml
from matplotlib.figure import Figure
from small_data import train_options, write_yaml

from hidiff import UserError, build_model
from hidiff.cli import call
from hidiff.cli.ablation import DEFAULT_FILES
from hidiff.engine.optim import build_lr_schedule
from hidiff.options.yaml_file import read_yaml
from hidiff.report.ablation import plan
from hidiff.report.ablation_changes import Changes, set_steps, shrink
from hidiff.report.ablation_table import draw


def main(arguments):
    return call("ablation", *map(str, arguments))


ROOT = Path(__file__).resolve().parent.parent.parent
OPTIONS = ROOT / "options" / "ablation"
SMALLER = [
    "network_g:dim=8",
    "datasets:train:batch_size_per_gpu=2",
    "datasets:train:gt_size=16",
    "datasets:train:num_worker_per_gpu=0",
    "num_gpu=0",
]


def folders(data):
    return {
        f"{part}_{side}": data / part / side
        for part in ("train", "test")
        for side in ("input", "target")
    }


def run(data, output, *stems, seeds=("0",), steps="2", extra=()):
    arguments = [str(OPTIONS / f"{stem}.yml") for stem in stems]
    arguments += ["--tiny", "--data", str(data), "--output", str(output), "--steps", steps]
    return main([*arguments, "--seeds", *seeds, "--force_yml", *SMALLER, *extra])


def test_the_default_is_table_1_and_the_sweep_each_training_once():
    runs = plan(DEFAULT_FILES, [3, 4], Changes(tiny=True))
    assert {path.name for path in DEFAULT_FILES} == {p.name for p in OPTIONS.iterdir()}
    assert [run.seed for run in runs] == [3] * 11 + [4] * 11
    names = [run.name for run in runs]
    for run in runs:
        assert run.name.endswith(f"_seed{run.seed}")
        assert run.options.manual_seed == run.seed
        stage1 = run.options.path.stage1
        if not run.model.from_stage1:
            assert stage1 is None
            continue
        kind = "Single_Guide" if "Single" in run.name else "HI_Diff"
        assert str(stage1) == f"ablation_{kind}_S1_seed{run.seed}"
        assert names.index(str(stage1)) < names.index(run.name)  # trained before


def test_changes_apply_to_every_file(data):
    overrides = ["network_d:n_denoise_res=2", "train:use_grad_clip=false"]
    changes = Changes(tiny=True, steps=30, data=folders(data), overrides=overrides)
    runs = plan(DEFAULT_FILES, [0], changes)
    for run in runs:
        train, source = run.options.for_training()
        assert train.total_iter == 30
        assert train.use_grad_clip is False
        assert (source.gt_size, source.batch_size_per_gpu) == (64, 8)
        assert source.source["dataroot_lq"] == str(data / "train" / "input")
        (test,) = run.options.test_sets().values()
        assert test.source["dataroot_gt"] == str(data / "test" / "target")
        assert set(run.options.datasets) == {"train", "test_1"}
        assert run.options.network_g["dim"] == 16
        # The baseline has no denoiser, and an override gives it none.
        without = run.label == "Baseline" or "S1" in run.label
        assert (run.options.network_d is None) == without
        if run.options.network_d is not None:
            assert run.options.network_d["n_denoise_res"] == 2


def test_steps_scale_what_counts_in_steps():
    content, _ = read_yaml(ROOT / "options/train/GoPro_S1.yml")
    content["train"]["warmup_iter"] = 3000
    set_steps(content, 1000)
    train = content["train"]
    # A third of the training at the constant rate, two thirds with the cosine.
    assert train["scheduler"]["periods"] == [333, 667]
    assert train["warmup_iter"] == 10
    assert content["datasets"]["train"]["iters"] == [67, 67, 67, 67, 67, 667]
    lr = build_lr_schedule(train["scheduler"], base_lr=2e-4, total_iter=1000)
    assert lr(1000) == pytest.approx(1e-6, rel=0.01)
    for steps in (1, 2, 7):
        set_steps(content, steps)
        build_lr_schedule(train["scheduler"], base_lr=2e-4, total_iter=steps)
    train["scheduler"] = {"type": "MultiStepLR", "milestones": [3, 6]}
    train["total_iter"] = 7
    set_steps(content, 70)
    assert train["scheduler"]["milestones"] == [30, 60]


def test_a_stage_1_that_is_not_listed_is_asked_for(tmp_path, data):
    for stem, name in (("T_4", "ablation_HI_Diff_S1"), ("Single_Guide_S2", "ablation_Single")):
        with pytest.raises(UserError, match=rf"{stem}\.yml: .*{name}"):
            plan([OPTIONS / f"{stem}.yml"], [0], Changes())
    weights = tmp_path / "net.pth"
    weights.touch()
    options = train_options(data, 2)
    options["datasets"]["test_1"] = options["datasets"]["val"]
    options["path"] = {f"pretrain_network_{n}": str(weights) for n in ("g", "le")}
    (planned,) = plan([write_yaml(tmp_path / "x.yml", options)], [0], Changes())
    assert planned.options.path.pretrain_network_g == weights


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (["--data", "nowhere"], "--data: .*nowhere/train/input"),
        (["--train-input", "."], "--train-target"),
        (["--data", ".", "--test-input", "."], "--data"),
        (["--steps", "0"], "--steps 0"),
        (["--force_yml", "network_g:dims=3"], r"Baseline\.yml: network_g\.dims"),
        (["--force_yml", "datasets:train:gt_size=30"], r"Baseline\.yml: datasets\.train"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(tmp_path, monkeypatch, arguments, place):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=place):
        main([str(OPTIONS / "Baseline.yml"), "--output", "out", *arguments])
    assert not Path("out").exists()


def test_two_files_of_one_name_and_a_missing_one_are_refused(tmp_path):
    file = OPTIONS / "Baseline.yml"
    twin = write_yaml(tmp_path / "twin.yml", {"base": str(file)})
    with pytest.raises(UserError, match="ablation_Baseline"):
        plan([file, twin], [0], Changes())
    with pytest.raises(UserError, match=r"none\.yml"):
        plan([tmp_path / "none.yml"], [0], Changes())


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    """An ablation of Split-Training and two values of T with two seeds."""
    output = tmp_path_factory.mktemp("ablation") / "out"
    stems = ("T_2", "T_1", "Split_Training_S2", "HI_Diff_S1")
    assert run(data, output, *stems, seeds=("0", "1")) == 0
    return output, stems


def test_the_table_holds_mean_and_deviation_over_the_seeds(done):
    output, _ = done
    text = (output / "ablation.md").read_text()
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    table = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}
    assert list(table)[2:] == [
        "blurry input",
        "T_2",
        "T_1",
        "Split_Training_S2",
        "HI_Diff_S1 (upper bound: sees the sharp image)",
    ]
    values = {"psnr": [], "ssim": []}
    for seed in (0, 1):
        with (output / f"results/ablation_T_2_seed{seed}/scores.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 2
        for metric, of_seeds in values.items():
            of_seeds.append(statistics.fmean(float(row[metric]) for row in rows))
    assert values["psnr"][0] != values["psnr"][1]
    psnr, ssim = (
        f"{statistics.fmean(v):.{d}f} ± {statistics.stdev(v):.{d}f}"
        for v, d in ((values["psnr"], 3), (values["ssim"], 4))
    )
    assert table["T_2"][2:] == [psnr, ssim, "0, 1", "2 × 2 × 16²"]
    report = json.loads((output / "ablation.json").read_text())
    by_label = {entry["label"]: entry for entry in report}
    assert by_label["T_2"]["scores"]["test"]["psnr"] == pytest.approx(values["psnr"])
    assert by_label["HI_Diff_S1"]["upper_bound"] is True
    assert by_label["Split_Training_S2"]["model_type"] == "HI_Diff_S2_Split"


def test_every_run_has_its_option_file_and_folders(done):
    output, stems = done
    for stem in stems:
        for seed in (0, 1):
            name = f"ablation_{stem}_seed{seed}"
            options = yaml.safe_load((output / "runs" / f"{name}.yml").read_text())
            assert (options["name"], options["manual_seed"]) == (name, seed)
            assert (output / "experiments" / name / "training_states" / "2.state").is_file()
    # Split-Training leaves the Transformer alone and saves none.
    models = output / "experiments/ablation_Split_Training_S2_seed0/models"
    assert {p.name for p in models.glob("*latest*")} == {"net_le_dm_latest.pth", "net_d_latest.pth"}
    plot = cv2.imread(str(output / "psnr_over_T.png"))
    # matplotlib's versions round the size of the picture differently.
    assert plot.shape[1:] == (720, 3) and abs(plot.shape[0] - 460) <= 1
    assert "![PSNR over T](psnr_over_T.png)" in (output / "ablation.md").read_text()


def snapshot(output):
    return {
        p: p.stat().st_mtime_ns
        for part in ("experiments", "results")
        for p in (output / part).rglob("*")
        if p.is_file()
    }


def test_a_second_call_does_nothing_but_what_is_missing(done, data):
    output, stems = done
    before = snapshot(output)
    assert run(data, output, *stems, seeds=("0", "1")) == 0
    assert snapshot(output) == before
    shutil.rmtree(output / "results/ablation_T_1_seed1")
    # Stopped within the test: what it has restored is kept.
    split = output / "results/ablation_Split_Training_S2_seed0"
    (split / "scores.json").unlink()
    (rows,) = split.rglob("*.jsonl")
    lines = rows.read_text().split()
    # Stopped before the first checkpoint.
    experiment = output / "experiments/ablation_T_2_seed1"
    shutil.rmtree(experiment / "training_states")
    shutil.rmtree(output / "results/ablation_T_2_seed1")
    assert run(data, output, *stems, seeds=("0", "1")) == 0
    after = snapshot(output)
    redone = {p.relative_to(output).parts[1] for p in after if before.get(p) != after[p]}
    archived = {name for name in redone if "archived" in name}
    again = {"ablation_T_1_seed1", "ablation_T_2_seed1", "ablation_Split_Training_S2_seed0"}
    assert redone - archived == again
    assert rows.read_text().split() == lines
    assert all(name.startswith("ablation_T_2_seed1_archived_") for name in archived)
    weights = output / "experiments/ablation_T_1_seed1/models/net_g_latest.pth"
    assert after[weights] == before[weights]


def test_another_budget_or_a_folder_of_something_else_is_left_alone(done, data, tmp_path):
    output, stems = done
    before = snapshot(output)
    with pytest.raises(UserError, match=r"out/runs/.*\.yml"):
        run(data, output, *stems, steps="3")
    assert snapshot(output) == before
    (tmp_path / "ablation.md").write_text("mine")
    with pytest.raises(UserError, match="--output"):
        run(data, tmp_path, "Baseline")
    assert [p.name for p in tmp_path.iterdir()] == ["ablation.md"]


def test_the_baseline_is_trained_and_scored(data, tmp_path):
    assert run(data, tmp_path / "out", "Baseline") == 0
    (entry,) = json.loads((tmp_path / "out/ablation.json").read_text())
    assert entry["label"] == "Baseline"
    assert not (tmp_path / "out/psnr_over_T.png").exists()


def test_tiny_sizes_fit_each_other_in_both_forms():
    for file in ("options/train/GoPro_S2.yml", "options/train/RealBlur_J_S2.yml"):
        content, _ = read_yaml(ROOT / file)
        shrink(content)
        assert build_model(content).net_g.prior_dim == 64
    content["network_d"]["type"] = "other"
    with pytest.raises(UserError, match="network_d"):
        shrink(content)


def test_the_plot_puts_its_points_where_the_axes_say():
    axes = Figure().add_subplot()
    series = {"a": [(1, 20.0, 0.5), (2, 21.0, 0.0), (8, 23.0, 0.0)], "b": [(4, 22.0, 0.0)]}
    draw(axes, series, title="t")
    for (label, points), container in zip(series.items(), axes.containers, strict=True):
        line, _, bars = container
        assert line.get_xydata().tolist() == [[x, y] for x, y, _ in points]
        assert container.has_yerr == (label == "a")
        if label == "a":
            assert bars[0].get_segments()[0].tolist() == [[1, 19.5], [1, 20.5]]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "4", "8"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    # log2: 2 is a third of the way from 1 to 8.
    one, two, eight = (axes.transData.transform((x, 20))[0] for x in (1, 2, 8))
    assert two - one == pytest.approx((eight - one) / 3)
