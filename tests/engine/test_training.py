"""Training from end to end, on tiny networks and pictures."""

import copy
import itertools

import cv2
import numpy as np
import pytest
import torch
from skimage import data as photographs
from skimage.metrics import peak_signal_noise_ratio
from small_data import make_pairs, picture, train_options
from small_training import ALONE, compiled_blocks, parameters, train

from hidiff import UserError, build_model
from hidiff.archs.restormer import DepthwiseConv2d
from hidiff.data.image import to_float
from hidiff.engine.optim import build_optimizer, clip_gradients, set_lr
from hidiff.engine.trainer import Trainer
from hidiff.options import parse_options
from hidiff.restore.image import to_image


def test_training_writes_its_folders(trained):
    folder = trained[0]
    experiment = folder / "experiments" / "tiny_S2"
    weights = sorted(p.name for p in (experiment / "models").glob("[!.]*"))
    assert weights == ["tiny_S2_2.safetensors", "tiny_S2_4.safetensors"]
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
    assert len(list((folder / "cache").glob("*.npy"))) > 2


def test_auto_resume_of_nothing_starts_anew(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = train(train_options(data, 1, total_iter=1), auto_resume=True)
    assert trainer.state.step == 1


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
    # Without the locks, whose time is that of the last who asked.
    files = {p: p.stat().st_mtime_ns for p in (folder / "experiments").rglob("[!.]*")}
    with pytest.raises(UserError, match=r"experiments/tiny_S1 .*--auto"):
        train(train_options(data, 1))
    assert {p: p.stat().st_mtime_ns for p in (folder / "experiments").rglob("[!.]*")} == files


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
    with pytest.raises(UserError, match=r"scene-001\.png: "):
        train(options)


def test_every_option_of_speed_arrives(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hidiff.models.compilation.check_compiler", lambda device, where: None)
    options = train_options(
        data, 1, compile=True, activation_checkpointing=[2, 4], ema_decay=0.9, precision="bf16"
    )
    run = Trainer(parse_options({**options, "kernels": "triton"}), ALONE)
    net = run.model.net_g
    assert len(compiled_blocks(run.model)) > 10
    assert not compiled_blocks(run.state.average)
    recomputed = {name for name, part in net.named_children() if getattr(part, "recompute", False)}
    assert recomputed == {"encoder_level2", "decoder_level2", "latent"}
    for network in (net, run.state.average.net_g):
        modes = {m.kernels for m in network.modules() if isinstance(m, DepthwiseConv2d)}
        assert modes == {"triton"}
    during = []
    monkeypatch.setattr(run, "_accumulate", lambda *_: during.append(net.feature_dtype) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.run()
    assert during == [torch.bfloat16]


def test_a_photograph_is_learned_by_heart(tmp_path):
    """A blurred crop of a real photograph is restored far better than it was, after training."""
    sharp = photographs.astronaut()[60:84, 190:214]
    blurry = cv2.blur(sharp, (9, 9))
    lq, gt = (torch.from_numpy(to_float(i)).permute(2, 0, 1)[None] for i in (blurry, sharp))
    options = train_options(tmp_path, 2)
    # RealBlur's form: its prior is not clamped, so it can be met without stage 1's training.
    options["network_le"]["type"] = "latent_encoder_lrelu"
    options["network_le_dm"] = {**options["network_le"], "in_chans": 3, "stage": 2}
    options["network_d"] = {"type": "simple_denoise", "n_feats": 8, "n_denoise_res": 1}
    options["diffusion_schedule"] = {"apply_ldm": True, "timesteps": 4}
    model = build_model(options)
    optimizer = build_optimizer({"type": "AdamW", "lr": 4e-3}, model)
    for step in range(60):
        set_lr(optimizer, 4e-3 * (1 - step / 60))
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
