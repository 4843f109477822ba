"""Training and testing from end to end, on tiny networks and pictures."""

import copy
import csv
import itertools
import json
import math

import cv2
import numpy as np
import pytest
import torch
from skimage import data as photographs
from skimage.metrics import peak_signal_noise_ratio
from small_data import make_pairs, picture, test_options, train_options, write_rgb, write_yaml

from hidiff import UserError, build_model
from hidiff.archs.restormer import DepthwiseConv2d
from hidiff.data.image import read_image, to_float
from hidiff.engine.distributed import Processes
from hidiff.engine.evaluator import restore_item, to_image
from hidiff.engine.experiment import Experiment
from hidiff.engine.optim import build_optimizer, clip_gradients, set_lr
from hidiff.engine.tester import run_test
from hidiff.engine.trainer import Trainer
from hidiff.metrics import evaluate_pair
from hidiff.options import load_options, parse_options

ALONE = Processes(0, 1, torch.device("cpu"))


def train(options, **kwargs):
    trainer = Trainer(parse_options(copy.deepcopy(options)), ALONE, **kwargs)
    trainer.run()
    return trainer


def parameters(trainer):
    return {
        f"{name}.{key}": tensor.clone()
        for name, network in trainer.model.networks().items()
        for key, tensor in network.state_dict().items()
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_pairs(folder / "train", 3)
    # Sides that are no multiples of 8.
    make_pairs(folder / "test", 2, height=37, width=43)
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A folder in which both stages were trained."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(train_options(data, 1))
        before = parameters(stage2 := Trainer(parse_options(train_options(data, 2)), ALONE))
        stage2.run()
        return folder, before, parameters(stage2)


def test_training_writes_the_release_folders(trained):
    folder = trained[0]
    experiment = folder / "experiments" / "tiny_S2"
    weights = sorted(p.name for p in (experiment / "models").iterdir())
    assert weights == sorted(
        f"net_{n}_{s}.pth" for n in ("g", "le_dm", "d") for s in ("2", "4", "latest")
    )
    assert sorted(p.name for p in (experiment / "training_states").iterdir()) == [
        "2.state",
        "4.state",
    ]
    assert list((folder / "tb_logger" / "tiny_S2").glob("events*"))
    log = next(experiment.glob("train_tiny_S2_*.log")).read_text()
    for expected in ("l_pix_diff", "gradient norm", "phase 2: 2 steps, patch 32²", "psnr"):
        assert expected in log
    assert "upper bound" not in log
    stage1 = next((folder / "experiments" / "tiny_S1").glob("*.log")).read_text()
    assert "val (upper bound: sees the sharp image) ValSet, psnr" in stage1


def test_tensorboard_holds_losses_metrics_and_pictures(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained[0] / "tb_logger" / "tiny_S2"))
    events.Reload()
    tags = events.Tags()
    for tag in ("losses/l_pix", "losses/l_pix_diff", "train/lr", "train/grad_norm"):
        assert [event.step for event in events.Scalars(tag)] == [1, 2, 3, 4]
    assert "metrics/ValSet/psnr" in tags["scalars"]
    shown = events.Images("ValSet/scene-000")[0]
    assert (shown.height, shown.width) == (37, 3 * 43)


def test_stage_two_starts_from_stage_one_and_keeps_its_encoder(trained):
    folder, before, after = trained
    models = folder / "experiments" / "tiny_S1" / "models"
    for name in ("net_g", "net_le"):
        saved = torch.load(models / f"{name}_latest.pth", weights_only=True)["params"]
        for key, tensor in saved.items():
            assert torch.equal(before[f"{name}.{key}"], tensor)
            if name == "net_le":
                assert torch.equal(after[f"{name}.{key}"], tensor)
    for name in ("net_g", "net_le_dm", "net_d"):
        assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith(name))


def test_resuming_ends_where_an_uninterrupted_run_ends(trained, data, monkeypatch):
    folder, _, after = trained
    monkeypatch.chdir(folder)
    options = {**train_options(data, 2), "name": "resumed_S2"}
    options["path"] = {
        f"pretrain_network_{n}": f"experiments/tiny_S1/models/net_{n}_latest.pth"
        for n in ("g", "le")
    }
    # The schedule knows the whole length; the run is cut off after the second step.
    trainer = Trainer(parse_options(copy.deepcopy(options)), ALONE)
    trainer.total_iter = 2
    trainer.run()
    resumed = train(options, auto_resume=True)
    assert any("resumed after step 2" in notice for notice in resumed.notices)
    for key, tensor in parameters(resumed).items():
        assert torch.equal(tensor, after[key]), key


def test_a_cache_of_the_frames_changes_no_weight(trained, data, monkeypatch):
    folder, _, after = trained
    monkeypatch.chdir(folder)
    options = {**train_options(data, 2), "name": "cached_S2"}
    for section in options["datasets"].values():
        section["cache"] = str(folder / "cache")
    options["datasets"]["train"]["num_worker_per_gpu"] = 1
    options["path"] = {
        f"pretrain_network_{n}": f"experiments/tiny_S1/models/net_{n}_latest.pth"
        for n in ("g", "le")
    }
    for key, tensor in parameters(train(options)).items():
        assert torch.equal(tensor, after[key]), key
    assert len(list((folder / "cache").glob("*.json"))) == 2, "one of each data set"


def test_auto_resume_of_nothing_starts_anew(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = train(train_options(data, 1, total_iter=1), auto_resume=True)
    assert trainer.step == 1


class Given(list):
    """Batches in place of those of a data set."""

    def __next__(self):
        return self.pop(0)

    def prefetch(self):
        pass


def test_accumulation_gives_the_gradient_of_the_larger_batch(data, tmp_path, monkeypatch):
    """One process standing for two: its gradient is that of both micro-batches together."""
    monkeypatch.chdir(tmp_path)
    options = train_options(data, 1, reference_world_size=2, use_grad_clip=False)
    trainer = Trainer(parse_options(options), ALONE)
    trainer.model.double()
    batches = list(itertools.islice(trainer.batches, 2))
    pixels = [[batch[side].double() for side in ("lq", "gt")] for batch in batches]
    trainer.batches = Given(
        {**batch, "lq": lq, "gt": gt} for batch, (lq, gt) in zip(batches, pixels, strict=True)
    )
    trainer._accumulate(1)
    accumulated = [p.grad.clone() for p in trainer.model.parameters()]
    trainer.model.zero_grad()
    lq, gt = (torch.cat(side) for side in zip(*pixels, strict=True))
    sum(trainer.model(lq, gt).values()).backward()
    for ours, p in zip(accumulated, trainer.model.parameters(), strict=True):
        torch.testing.assert_close(ours, p.grad, rtol=1e-10, atol=1e-14)


def test_an_existing_experiment_is_not_overwritten(trained, data, monkeypatch):
    folder = trained[0]
    monkeypatch.chdir(folder)
    files = {p: p.stat().st_mtime_ns for p in (folder / "experiments").rglob("*")}
    with pytest.raises(UserError, match=r"experiments/tiny_S1 holds an experiment already.*--auto"):
        train(train_options(data, 1))
    assert {p: p.stat().st_mtime_ns for p in (folder / "experiments").rglob("*")} == files


def test_stage_two_without_stage_one_says_what_to_do(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_yaml(tmp_path / "T_S1.yml", train_options(data, 1))
    path = write_yaml(tmp_path / "T_S2.yml", train_options(data, 2))
    message = r"path\.pretrain_network_g: experiments/tiny_S1/models/net_g_latest\.pth does not "
    with pytest.raises(UserError, match=message + r"exist; train stage 1 first: .* -opt .*T_S1"):
        Trainer(load_options(path), ALONE)
    assert not Experiment("tiny_S2").folder.exists()


def test_the_releases_debug_path_means_the_folder_that_stage_one_writes(
    trained, data, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    options = train_options(data, 2)
    models = tmp_path / "experiments" / "train_x_S1" / "models"
    models.mkdir(parents=True)
    for name in ("g", "le"):
        source = trained[0] / "experiments/tiny_S1/models" / f"net_{name}_latest.pth"
        (models / f"net_{name}_300000.pth").write_bytes(source.read_bytes())
    options["path"] = {
        f"pretrain_network_{n}": f"experiments/debug_train_x_S1/models/net_{n}_300000.pth"
        for n in ("g", "le")
    }
    trainer = Trainer(parse_options(options), ALONE)
    assert any("experiments/train_x_S1/models/net_g_300000.pth is taken" in n
               for n in trainer.notices)  # fmt: skip


def test_resuming_with_options_that_change_the_result_is_refused(trained, data, monkeypatch):
    monkeypatch.chdir(trained[0])
    options = train_options(data, 1)
    options["network_g"]["dim"] = 16
    with pytest.raises(UserError, match=r"other options.*network_g\.dim: 8 → 16"):
        train(options, auto_resume=True)


def test_a_damaged_training_image_stops_with_its_name(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_pairs(tmp_path / "train", 2)
    path = tmp_path / "train" / "input" / "scene-001.png"
    path.write_bytes(path.read_bytes()[:99])
    make_pairs(tmp_path / "test", 1)
    options = train_options(tmp_path, 1)
    options["datasets"]["train"]["num_worker_per_gpu"] = 1
    with pytest.raises(UserError, match=r"scene-001\.png: the image file is truncated"):
        train(options)


@pytest.fixture
def tested(trained, data, monkeypatch):
    """The trained folder, with results/tiny_test of a fresh run."""
    monkeypatch.chdir(trained[0])
    assert run_test(parse_options(test_options(data)), ALONE)
    return trained[0] / "results" / "tiny_test"


def test_testing_writes_pictures_table_json_and_csv(tested, data):
    report = json.loads((tested / "metrics.json").read_text())
    summary = report["datasets"]["small"]
    assert summary["protocol"] == "basicsr"
    assert (summary["images"], summary["scored"], summary["failed"]) == (2, 2, {})
    with (tested / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["scene-000", "scene-001"]
    for row in rows:
        restored = read_image(tested / "visualization" / "small" / f"{row['image']}.png")
        sharp = read_image(data / "test" / "target" / f"{row['image']}.png")
        blurry = read_image(data / "test" / "input" / f"{row['image']}.png")
        assert restored.shape == (37, 43, 3)
        assert float(row["psnr"]) == pytest.approx(peak_signal_noise_ratio(sharp, restored))
        assert float(row["blurry_psnr"]) == pytest.approx(peak_signal_noise_ratio(sharp, blurry))
    for metric in ("psnr", "ssim"):
        mean = math.fsum(float(row[metric]) for row in rows) / 2
        assert summary["restored"][metric] == pytest.approx(mean, rel=1e-12)


def test_a_protocol_replaces_the_metrics(trained, data, monkeypatch):
    monkeypatch.chdir(trained[0])
    options = {**test_options(data), "name": "protocol"}
    options["val"]["protocol"] = "matlab"
    assert run_test(parse_options(options), ALONE)
    results = trained[0] / "results" / "protocol"
    summary = json.loads((results / "metrics.json").read_text())["datasets"]["small"]
    assert summary["protocol"] == "matlab"
    pairs = [
        [read_image(folder / f"scene-00{i}.png")
         for folder in (results / "visualization/small", data / "test/target")]
        for i in range(2)
    ]  # fmt: skip
    scores = [evaluate_pair(*pair, protocol="matlab") for pair in pairs]
    for name in ("psnr", "ssim"):
        assert summary["restored"][name] == pytest.approx(sum(s[name] for s in scores) / 2)


def test_the_benchmark_protocol_is_chosen_by_the_name_of_the_data_set(
    trained, data, monkeypatch, capsys
):
    monkeypatch.chdir(trained[0])
    options = {**test_options(data), "name": "benchmark"}
    options["val"]["protocol"] = "benchmark"
    section = options["datasets"].pop("test_1")
    for index, name in enumerate(("HIDE", "RealBlur_J", "other"), start=1):
        options["datasets"][f"test_{index}"] = {**section, "name": name}
    assert run_test(parse_options(options), ALONE)
    report = json.loads((trained[0] / "results/benchmark/metrics.json").read_text())
    protocols = [summary["protocol"] for summary in report["datasets"].values()]
    assert protocols == ["matlab", "realblur", "basicsr"]
    assert any("980" in remark for remark in report["datasets"]["RealBlur_J"]["remarks"])
    assert report["datasets"]["other"]["remarks"] == []


def compiled_blocks(model):
    return [m for m in model.modules() if m._compiled_call_impl is not None]


def test_every_option_of_speed_arrives(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hidiff.engine.compilation.check_compiler", lambda device, where: None)
    options = train_options(
        data, 1, compile=True, activation_checkpointing=[2, 4], ema_decay=0.9, precision="bf16"
    )
    run = Trainer(parse_options({**options, "kernels": "triton"}), ALONE)
    net = run.model.net_g
    assert len(compiled_blocks(run.model)) > 10
    assert not compiled_blocks(run.average.model)
    recomputed = {name for name, part in net.named_children() if getattr(part, "recompute", False)}
    assert recomputed == {"encoder_level2", "decoder_level2", "latent"}
    for network in (net, run.average.model.net_g):
        modes = {m.kernels for m in network.modules() if isinstance(m, DepthwiseConv2d)}
        assert modes == {"triton"}
    during = []
    monkeypatch.setattr(run, "_accumulate", lambda step: during.append(net.feature_dtype) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.run()
    assert during == [torch.bfloat16]


def test_every_option_of_speed_arrives_in_testing(trained, data, monkeypatch):
    monkeypatch.chdir(trained[0])
    monkeypatch.setattr("hidiff.engine.compilation.check_compiler", lambda device, where: None)
    seen = []

    def look(model, *others, **options):
        modes = {m.kernels for m in model.modules() if isinstance(m, DepthwiseConv2d)}
        seen.append((len(compiled_blocks(model)) > 10, modes, model.net_g.feature_dtype))
        raise ZeroDivisionError

    monkeypatch.setattr("hidiff.engine.tester.evaluate", look)
    options = {**test_options(data), "name": "speed", "kernels": "eager"}
    options["val"] |= {"compile": True, "precision": "bf16"}
    with pytest.raises(ZeroDivisionError):
        run_test(parse_options(options), ALONE)
    assert seen == [(True, {"eager"}, torch.bfloat16)]


def test_validation_and_testing_take_their_threads_from_the_options(
    trained, data, monkeypatch, tmp_path
):
    asked = []
    monkeypatch.setattr(
        "hidiff.engine.evaluator.thread_count", lambda wanted, device: asked.append(wanted) or 2
    )
    monkeypatch.chdir(trained[0])
    options = {**test_options(data), "name": "threads"}
    options["val"]["num_workers"] = 5
    assert run_test(parse_options(options), ALONE)
    monkeypatch.chdir(tmp_path)
    options = train_options(data, 1, total_iter=1)
    options["val"]["num_workers"] = 6
    train(options)
    assert asked == [5, 6]


def test_several_seeds_report_their_deviation(tested, trained, data):
    options = {**test_options(data), "name": "seeds"}
    assert run_test(parse_options(options), ALONE, seeds=3)
    results = trained[0] / "results" / "seeds"
    with (results / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["seed"]) for row in rows] == [
        (f"scene-00{i}", str(seed)) for seed in (3, 4, 5) for i in range(2)
    ]
    psnr = np.array([float(row["psnr"]) for row in rows]).reshape(3, 2)
    summary = json.loads((results / "metrics.json").read_text())["datasets"]["small"]
    deviation = summary["seeds"]["standard_deviation"]
    assert summary["restored"]["psnr"] == pytest.approx(psnr.mean())
    assert deviation["of_mean"]["psnr"] == pytest.approx(psnr.mean(axis=1).std(ddof=1))
    assert deviation["of_image"]["psnr"] == pytest.approx(psnr.std(axis=0, ddof=1).mean())
    first = json.loads((tested / "metrics.json").read_text())["datasets"]["small"]
    assert first["restored"]["psnr"] == pytest.approx(psnr[0].mean())
    pictures = [p / "visualization/small/scene-000.png" for p in (results, tested)]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_an_images_result_does_not_depend_on_the_others(tested, trained, data, tmp_path):
    alone = tmp_path / "test"
    for side in ("input", "target"):
        (alone / side).mkdir(parents=True)
        name = "scene-001.png"
        (alone / side / name).write_bytes((data / "test" / side / name).read_bytes())
    options = {**test_options(tmp_path), "name": "one_image"}
    assert run_test(parse_options(options), ALONE)
    both = tested / "visualization" / "small" / "scene-001.png"
    one = trained[0] / "results" / "one_image" / "visualization" / "small" / "scene-001.png"
    assert both.read_bytes() == one.read_bytes()


def test_another_seed_gives_other_noise(tested, trained, data):
    options = {**test_options(data), "name": "other_seed", "manual_seed": 4}
    assert run_test(parse_options(options), ALONE)
    pictures = [
        read_image(trained[0] / "results" / name / "visualization/small/scene-000.png")
        for name in ("tiny_test", "other_seed")
    ]
    assert not np.array_equal(*pictures)


def test_earlier_results_are_set_aside(tested, trained, data):
    (tested / "mine.txt").write_text("kept")
    assert run_test(parse_options(test_options(data)), ALONE)
    assert not (tested / "mine.txt").exists()
    archived = list((trained[0] / "results").glob("tiny_test_archived_*/mine.txt"))
    assert [path.read_text() for path in archived] == ["kept"]


def test_without_ground_truth_it_restores_and_does_not_score(trained, data, monkeypatch):
    monkeypatch.chdir(trained[0])
    options = {**test_options(data), "name": "blind"}
    del options["datasets"]["test_1"]["dataroot_gt"]
    assert run_test(parse_options(options), ALONE)
    results = trained[0] / "results" / "blind"
    assert len(list((results / "visualization" / "small").iterdir())) == 2
    summary = json.loads((results / "metrics.json").read_text())["datasets"]["small"]
    assert (summary["scored"], summary["restored"]) == (0, {})


def test_a_damaged_test_image_is_reported_and_the_rest_goes_on(
    trained, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(trained[0])
    make_pairs(tmp_path / "test", 3)
    path = tmp_path / "test" / "input" / "scene-001.png"
    path.write_bytes(path.read_bytes()[:99])
    options = {**test_options(tmp_path), "name": "damaged"}
    assert run_test(parse_options(options), ALONE) is False
    summary = json.loads((trained[0] / "results/damaged/metrics.json").read_text())
    summary = summary["datasets"]["small"]
    assert (summary["images"], summary["scored"]) == (3, 2)
    assert "truncated" in summary["failed"]["scene-001"]


def test_an_image_too_small_for_the_metric_is_reported_and_the_rest_goes_on(
    trained, tmp_path, monkeypatch
):
    monkeypatch.chdir(trained[0])
    make_pairs(tmp_path / "test", 2)
    for side in ("input", "target"):
        write_rgb(tmp_path / "test" / side / "small.png", picture(5, 8, 10))
    options = {**test_options(tmp_path), "name": "small_image"}
    del options["val"]["save_img"]
    assert run_test(parse_options(options), ALONE) is False
    results = trained[0] / "results" / "small_image"
    summary = json.loads((results / "metrics.json").read_text())["datasets"]["small"]
    assert (summary["images"], summary["scored"]) == (3, 2)
    assert "restored but not scored" in summary["failed"]["small"]
    assert len(list((results / "visualization" / "small").iterdir())) == 3


def test_a_second_try_of_stage_two_finds_stage_one(trained, data, monkeypatch):
    monkeypatch.chdir(trained[0])
    options = {**train_options(data, 2), "name": "tiny_S2_b"}
    trainer = Trainer(parse_options(options), ALONE)
    assert any("experiments/tiny_S1/models/net_g_latest.pth, saved after step 4" in notice
               for notice in trainer.notices)  # fmt: skip
    assert any("train.reference_world_size is not set" in notice for notice in trainer.notices)


def test_self_ensemble_averages_the_eight_symmetries(trained, data, monkeypatch):
    """With weights of a network that copies its input, every symmetry gives the input back."""
    monkeypatch.chdir(trained[0])
    model = build_model(test_options(data)).eval()
    model.net_g.output.weight.data.zero_()
    item = {"lq": torch.rand(3, 19, 24), "name": "x"}
    restored = restore_item(model, item, seed=0, device=torch.device("cpu"), self_ensemble=True)
    torch.testing.assert_close(restored, item["lq"], rtol=0, atol=1e-6)


def test_testing_needs_weights_for_every_network(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = test_options(data)
    with pytest.raises(UserError, match=r"pretrain_network_g: .* does not exist; download"):
        run_test(parse_options(copy.deepcopy(options)), ALONE)
    del options["path"]
    with pytest.raises(UserError, match=r"path\.pretrain_network_g: testing needs a weights file"):
        run_test(parse_options(options), ALONE)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_photograph_is_learned_by_heart(tmp_path, stage):
    """A blurred crop of a real photograph is restored far better than it was, after training."""
    sharp = photographs.astronaut()[60:124, 190:254]
    blurry = cv2.blur(sharp, (7, 7))
    lq, gt = (torch.from_numpy(to_float(i)).permute(2, 0, 1)[None] for i in (blurry, sharp))
    options = train_options(tmp_path, stage)
    options["network_g"]["dim"] = 16
    # RealBlur's form: its prior is not clamped, so it can be met without stage 1's training.
    options["network_le"]["type"] = "latent_encoder_lrelu"
    options["network_le_dm"] = {**options["network_le"], "in_chans": 3, "stage": 2}
    options["network_d"] = {"type": "simple_denoise", "n_feats": 8, "n_denoise_res": 1}
    options["diffusion_schedule"] = {"apply_ldm": True, "timesteps": 4}
    model = build_model(options)
    optimizer = build_optimizer({"type": "AdamW", "lr": 4e-3}, model)
    for step in range(150):
        set_lr(optimizer, 4e-3 * (1 - step / 150))
        sum(model(lq, gt).values()).backward()
        clip_gradients(model, 0.01)
        optimizer.step()
        optimizer.zero_grad()
    restored = to_image(model.eval().restore(lq, gt))
    before = peak_signal_noise_ratio(sharp, blurry)
    after = peak_signal_noise_ratio(sharp, restored)
    assert after > before + 3, (before, after)


def test_pictures_differ():
    """The helpers make different pictures, or the tests above would prove little."""
    assert not np.array_equal(picture(0, 20, 20), picture(1, 20, 20))
