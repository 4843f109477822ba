"""A training run in one process: what it writes, and how it ends or is stopped."""

import copy
import dataclasses
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from baseline_options import baseline_options
from skimage import data as photographs
from skimage.metrics import peak_signal_noise_ratio
from small_data import make_pairs, train_options, write_yaml
from small_training import (
    ALONE,
    assert_same_weights,
    build,
    compiled_blocks,
    log_of,
    parameters,
    quick_options,
    train,
    validated,
)

from hidiff import UserError, build_model
from hidiff.archs.restormer import DepthwiseConv2d
from hidiff.data.image import to_float
from hidiff.engine import checkpoint
from hidiff.engine.optim import build_optimizer, clip_gradients, set_lr
from hidiff.engine.trainer import Trainer
from hidiff.models import DeblurModel
from hidiff.options import load_options, parse_options
from hidiff.utils.errors import Interrupted
from hidiff.utils.signals import STOP_SIGNALS

STATES = Path("experiments/quick/training_states")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _no_signal_is_ignored():
    """As they are where the suite runs in the background."""
    kept = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def four_steps(data, tmp_path_factory):
    """The weights after an uninterrupted training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        return parameters(train(quick_options(data)))


def test_training_writes_its_folders(trained):
    folder = trained[0]
    experiment = folder / "experiments" / "tiny_S2"
    models = sorted(path.name for path in (experiment / "models").iterdir())
    assert models == ["tiny_S2_2.safetensors", "tiny_S2_4.safetensors"]
    states = sorted(path.name for path in (experiment / "training_states").iterdir())
    assert states == ["2.state", "4.state"]
    log = next(experiment.glob("train_tiny_S2_*.log")).read_text()
    for expected in ("l_pix_diff", "gradient norm", "phase 2: 2 steps, patch 32²"):
        assert expected in log
    assert re.search(r"step 4: val ValSet, psnr [\d.]+ \(blurry [\d.]+, best", log)
    assert "upper bound" not in log
    assert "reference_world_size" not in log  # of one process
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


def test_stage_2_resumes_across_a_phase_with_loaders_and_a_cache(trained, data, monkeypatch):
    folder, _, after = trained
    monkeypatch.chdir(folder)
    options = {**train_options(data, 2), "name": "resumed_S2"}
    options["datasets"]["train"] |= {"num_worker_per_gpu": 1, "cache": str(folder / "cache")}
    options["path"] = {"stage1": "tiny_S1"}
    # The schedule knows the whole length; the run is cut off after the second step.
    first = build(options)
    first.total_iter = 2
    first.run()
    resumed = train(options, auto_resume=True)
    assert "resumed after step 2" in log_of("resumed_S2")
    assert_same_weights(parameters(resumed), after)


def interrupt(run, after, numbers=(signal.SIGTERM,)):
    """Send signals to this process in the step after another one."""
    update = run._update

    def interrupted():
        if run.state.step == after:
            for number in numbers:
                os.kill(os.getpid(), number)
        update()

    run._update = interrupted


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_ends_the_step_saves_and_leaves(data, four_steps, number):
    options = quick_options(data)
    options["logger"]["save_checkpoint_freq"] = 4
    run = build(options)
    before = signal.getsignal(number)
    interrupt(run, 2, [number])
    with pytest.raises(Interrupted) as stopped:
        run.run()
    # The step may be over before Python delivers the signal.
    assert run.state.step in (2, 3)
    assert log_of().count(str(stopped.value)) <= 1
    assert signal.getsignal(number) == before
    resumed = build(options, auto_resume=True)
    assert resumed.state.step == run.state.step
    resumed.run()
    assert_same_weights(parameters(resumed), four_steps)


def test_a_second_ctrl_c_ends_at_once_and_an_ignored_signal_does_nothing(data):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    run = build(quick_options(data))
    interrupt(run, 1, [signal.SIGHUP])
    interrupt(run, 3, [signal.SIGINT, signal.SIGINT])
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert run.state.step == 3


def test_a_stop_ends_a_validation_between_two_images_and_loses_nothing(data):
    """At a step without a checkpoint, and at one with it."""
    options = validated(quick_options(data, total_iter=3), data, 1)
    options["logger"]["save_checkpoint_freq"] = 2
    whole = train(options)
    Path("experiments").rename("first")
    for step, due in ((1, False), (2, True)):
        run = build(options, auto_resume=True)
        restored = []

        def restore(*args, run=run, step=step, due=due, restored=restored, **kwargs):
            if run.state.step == step:
                # What the checkpoint's step calls for is on the disk before validation begins.
                assert (STATES / f"{step}.state").exists() == due
                os.kill(os.getpid(), signal.SIGTERM)
                restored.append(1)
            return type(run.model).restore(run.model, *args, **kwargs)

        run.model.restore = restore
        with pytest.raises(Interrupted):
            run.run()
        assert (run.state.step, restored) == (step, [1])
        state = checkpoint.newest_state(STATES)[0].content
        assert (state["step"], state["validated"]) == (step, False)
    resumed = train(options, auto_resume=True)
    assert resumed.state.best == whole.state.best
    assert_same_weights(parameters(resumed), parameters(whole))
    state = checkpoint.newest_state(STATES)[0].content
    assert (state["validated"], state["best"]) == (True, whole.state.best)


def test_a_rank_without_its_torchrun_saves_and_stops(data):
    options = quick_options(data)
    options["logger"]["save_checkpoint_freq"] = 4
    run = build(options, dataclasses.replace(ALONE, agent=os.getppid() + 1))
    with pytest.raises(Interrupted):
        run.run()
    assert checkpoint.newest_state(STATES)[0].content["step"] == 1


def test_a_signal_ends_a_wait_for_data_and_saves(data, monkeypatch):
    options = quick_options(data)
    options["datasets"]["train"]["num_worker_per_gpu"] = 1
    run = build(options)
    read, trained, reads = type(run.dataset).__getitem__, os.getpid(), []

    def hang(self, request):
        reads.append(request)
        if len(reads) > 4:  # the third step's
            os.kill(trained, signal.SIGTERM)
            time.sleep(600)
        return read(self, request)

    monkeypatch.setattr(type(run.dataset), "__getitem__", hang)
    started = time.monotonic()
    with pytest.raises(Interrupted):
        run.run()
    assert time.monotonic() - started < 20
    state, _ = checkpoint.newest_state(STATES)
    assert state.content["step"] == run.state.step <= 2


def test_a_loader_that_is_silent_too_long_ends_the_run(data, monkeypatch):
    options = quick_options(data)
    options["datasets"]["train"] |= {"num_worker_per_gpu": 1, "timeout": 2}
    run = build(options)
    monkeypatch.setattr(type(run.dataset), "__getitem__", lambda *_: time.sleep(600))
    with pytest.raises(UserError, match=r"datasets\.train\.timeout"):
        run.run()


def test_loader_processes_leave_signals_to_the_trainer(data):
    """A scheduler's SIGTERM reaches the whole process group, loaders included."""
    options = quick_options(data, total_iter=3)
    options["datasets"]["train"]["num_worker_per_gpu"] = 1
    run = build(options)
    run.train_step(1)
    loaders = multiprocessing.active_children()
    assert loaders
    for loader in loaders:
        os.kill(loader.pid, signal.SIGTERM)
    run.train_step(2)
    run.train_step(3)
    run.batches.close()


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_damaged_image_stops_the_run_or_is_replaced(data, tmp_path, policy):
    make_pairs(tmp_path / "train", 3)
    path = tmp_path / "train" / "input" / "scene-001.png"
    options = quick_options(tmp_path, on_bad_image=policy)
    options["datasets"]["train"]["num_worker_per_gpu"] = 1
    run = build(options)
    path.write_bytes(path.read_bytes()[:99])
    if policy == "stop":
        with pytest.raises(UserError, match=r"scene-001\.png"):
            run.run()
        assert "scene-001.png" in log_of()
    else:
        run.run()
        assert re.search(r"WARNING: step \d: .*scene-001\.png", log_of())


def test_skipping_ends_where_no_image_can_be_used(tmp_path):
    make_pairs(tmp_path / "train", 2)
    run = build(quick_options(tmp_path, on_bad_image="skip"))
    for path in (tmp_path / "train/input").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError):
        run.run()


def test_a_failed_image_of_a_validation_is_named(data):
    run = build(validated(quick_options(data, total_iter=1), data, 1))
    restore, failed = run.model.restore, []

    def fails_once(*args, **kwargs):
        if not failed:
            failed.append(1)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return restore(*args, **kwargs)

    run.model.restore = fails_once
    run.run()
    assert re.search(r"ValSet: scene-00\d", log_of())


def test_validation_takes_the_average_by_option(data):
    for use_ema in (True, False):
        options = validated(quick_options(data, total_iter=1, ema_decay=0.5), data, 1)
        options["val"]["use_ema"] = use_ema
        options["name"] = f"ema_{use_ema}"
        run = build(options)
        scored = []
        run.validator.run = lambda model, *_, scored=scored: scored.append(model) or True
        run.run()
        assert scored == [run.state.average if use_ema else run.model]


def test_the_options_in_force_stand_in_the_experiments_folder(data):
    write_yaml(Path("base.yml"), quick_options(data))
    path = write_yaml(Path("a.yml"), {"base": "base.yml", "logger": {"print_freq": 7}})
    run = Trainer(load_options(path, ["name=other", "train:total_iter=3"]), ALONE)
    text = next(Path("experiments/other").glob("*_a.yml")).read_text()
    assert "# --force_yml name=other\n# --force_yml train:total_iter=3\n" in text
    effective = yaml.safe_load(text)
    assert effective["train"]["total_iter"] == 3
    assert effective["logger"]["print_freq"] == 7
    assert parse_options(effective).sections == run.options.sections


def test_every_option_of_speed_arrives(data, monkeypatch):
    monkeypatch.setattr("hidiff.models.compilation.check_compiler", lambda device, where: None)
    options = train_options(
        data, 1, compile=True, activation_checkpointing=[2, 4], ema_decay=0.9, precision="bf16"
    )
    run = build({**options, "kernels": "triton"})
    net = run.model.net_g
    assert len(compiled_blocks(run.model)) > 10
    assert not compiled_blocks(run.state.average)
    recomputed = {name for name, part in net.named_children() if getattr(part, "recompute", False)}
    assert recomputed == {"encoder_level2", "decoder_level2", "latent"}
    for network in (net, run.state.average.net_g):
        modes = {m.kernels for m in network.modules() if isinstance(m, DepthwiseConv2d)}
        assert modes == {"triton"}
    during = []
    run.gradients.accumulate = lambda *_: during.append(net.feature_dtype) or 1 / 0
    with pytest.raises(ZeroDivisionError):
        run.run()
    assert during == [torch.bfloat16]


@pytest.mark.parametrize(
    ("network", "patches", "message"),
    [
        ({"depth": 5}, {"gt_size": 24}, r"datasets\.train\.gt_size: 24, .*HINet.*16"),
        ({"depth": 5}, {"gt_size": 16}, r"datasets\.train\.gt_size: 16, .*HINet.*32"),
        (
            {"depth": 5, "hin_position_right": 0},
            {"gt_sizes": [16, 24], "gt_size": 32, "mini_batch_sizes": [1, 1], "iters": [1, 1]},
            r"datasets\.train\.gt_sizes: 24, .*HINet.*16",
        ),
    ],
    ids=["no multiple", "too small", "of the second phase"],
)
def test_patches_that_the_network_cannot_take_are_refused(data, network, patches, message):
    options = baseline_options(data, "HINet")
    options["network_g"] |= network
    del options["datasets"]["train"]["gt_size"]
    options["datasets"]["train"] |= patches
    with pytest.raises(UserError, match=message):
        build(options, dry=True)


def test_a_step_waits_for_the_device_once(data, monkeypatch):
    """What several processes exchange is counted in test_processes.py."""
    run = build(quick_options(data))
    run.train_step(1)
    calls = []
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__"):
        method = getattr(torch.Tensor, name)

        def counted(tensor, *args, name=name, method=method, **kwargs):
            calls.append(name)
            return method(tensor, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    update = run.state.optimizer.step
    run.state.optimizer.step = lambda: None  # torch's own reads its step count
    run.train_step(2)
    assert calls == ["tolist"]
    run.state.optimizer.step = update


def test_a_photograph_is_learned_by_heart(tmp_path):
    """A blurred crop of a real photograph is restored far better than it was, after training."""
    sharp = photographs.astronaut()[60:84, 190:214]
    blurry = cv2.blur(sharp, (9, 9))
    lq, gt = (torch.from_numpy(to_float(i)).permute(2, 0, 1)[None] for i in (blurry, sharp))
    options = copy.deepcopy(train_options(tmp_path, 2))
    # RealBlur's form: its prior is not clamped, so it can be met without stage 1's training.
    options["network_le"]["type"] = "latent_encoder_lrelu"
    options["network_le_dm"] = {**options["network_le"], "in_chans": 3, "stage": 2}
    options["network_d"] = {"type": "simple_denoise", "n_feats": 8, "n_denoise_res": 1}
    options["diffusion_schedule"] = {"apply_ldm": True, "timesteps": 4}
    model: DeblurModel = build_model(options)
    optimizer = build_optimizer({"type": "AdamW", "lr": 4e-3}, model)
    for step in range(60):
        set_lr(optimizer, 4e-3 * (1 - step / 60))
        sum(model(lq, gt).values()).backward()
        clip_gradients(model, 0.01)
        optimizer.step()
        optimizer.zero_grad()
    restored = model.eval().restore(lq, gt)[0].clamp(0, 1).permute(1, 2, 0).detach().numpy()
    before = peak_signal_noise_ratio(to_float(sharp), to_float(blurry))
    after = peak_signal_noise_ratio(to_float(sharp), restored.astype(np.float32))
    assert after > before + 3, (before, after)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"network_g": {"img_channel": 1}}, "network_g"),
        ({"train": {"optim_total": {"lr": 0}}}, r"train\.optim_total\.lr"),
    ],
)
def test_what_cannot_be_trained_leaves_no_folder(data, tmp_path, monkeypatch, change, place):
    """Channels that are not the data's, a learning rate of 0."""
    monkeypatch.chdir(tmp_path)
    options = quick_options(data)
    for section, values in change.items():
        for key, value in values.items():
            if isinstance(value, dict):
                options[section][key] |= value
            else:
                options[section][key] = value
    with pytest.raises(UserError, match=place):
        build(options)
    assert not Path("experiments").exists()
