"""Runs that cannot be lost: bad gradients and images, full disks, signals, damaged checkpoints."""

import copy
import dataclasses
import errno
import os
import re
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small_data import make_pairs, train_options
from small_programs import start

from hidiff import UserError, files
from hidiff.data import BatchPlan, PhaseBatchSampler, build_dataset, training_batches
from hidiff.data.loader import STOP_SIGNALS
from hidiff.engine import checkpoint
from hidiff.engine.trainer import Trainer
from hidiff.options import parse_options
from hidiff.utils.distributed import Processes
from hidiff.utils.errors import EXIT_INTERRUPTED, Interrupted
from hidiff.utils.files import hold

ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_pairs(folder / "train", 3)
    make_pairs(folder / "test", 2, height=32, width=32)
    return folder


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


def trainer(options, **kwargs):
    return Trainer(parse_options(copy.deepcopy(options)), ALONE, **kwargs)


def weights(run):
    return {k: v.clone() for k, v in run.model.state_dict().items()}


def logged():
    return next(Path("experiments/tiny_S1").glob("*.log")).read_text()


def nan_gradient(loss):
    return loss * float("nan")


def infinite_loss(loss):
    """The gradient stays finite."""
    return loss + float("inf")


def poison(run, steps, how=nan_gradient):
    """Spoil the losses of these steps."""
    clean = run.model.forward

    def forward(lq, gt, **kwargs):
        losses = clean(lq, gt, **kwargs)
        bad = run.state.step + 1 in steps
        return {name: how(loss) if bad else loss for name, loss in losses.items()}

    run.model.forward = forward


@pytest.mark.parametrize(("how", "value"), [(nan_gradient, "nan"), (infinite_loss, "inf")])
def test_a_bad_gradient_or_loss_skips_the_step_and_names_the_images(data, how, value):
    run = trainer(train_options(data, 1, total_iter=2))
    before = weights(run)
    poison(run, {1, 2}, how)
    run.run()
    assert all(torch.equal(v, before[k]) for k, v in run.model.state_dict().items())
    log = logged()
    assert log.count("is not finite") == 2
    assert re.search(rf"step 1: .*l_pix {value}.*images: scene-00\d, scene-00\d", log)
    state = torch.load("experiments/tiny_S1/training_states/2.state", weights_only=True)
    assert state["bad_steps"] == 2


def test_one_bad_step_does_no_harm(data):
    run = trainer(train_options(data, 1))
    poison(run, {2})
    run.run()
    assert run.state.bad_steps == 0
    assert all(torch.isfinite(v).all() for v in run.model.state_dict().values())


def test_too_many_bad_steps_stop_with_the_last_good_checkpoint(data):
    run = trainer(train_options(data, 1, max_bad_steps=2))
    poison(run, {3, 4})
    with pytest.raises(UserError, match="2 steps"):
        run.run()
    state, notices = checkpoint.newest_state(Path("experiments/tiny_S1/training_states"))
    assert (state.content["step"], notices) == (2, [])
    assert all(torch.isfinite(v).all() for v in state.content["networks"]["net_g"].values())


def test_a_full_disk_does_not_stop_the_run(data, monkeypatch):
    run = trainer(train_options(data, 1))
    write = checkpoint.torch.save

    def full(content, file):
        if run.state.step == 2:
            raise OSError(28, "No space left on device")
        write(content, file)

    monkeypatch.setattr(checkpoint.torch, "save", full)
    run.run()
    assert "step 2: the checkpoint could not be written" in logged()
    assert [p.name for p in Path("experiments/tiny_S1/training_states").iterdir()] == ["4.state"]


@pytest.mark.parametrize("count", [6000, 99999])
def test_a_file_size_limit_is_a_full_disk_too(tmp_path, count):
    """The limit of the operating system; torch alone answers with an error of its archive."""
    path = tmp_path / "a.state"
    checkpoint.save_atomically({"x": torch.ones(9)}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            checkpoint.save_atomically({"x": torch.ones(count)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(torch.load(path, weights_only=True)["x"]) == 9
    assert list(tmp_path.iterdir()) == [path]


def test_a_state_cut_off_anywhere_is_noticed(data):
    run = trainer(train_options(data, 1))
    run.run()
    states = Path("experiments/tiny_S1/training_states")
    whole = (states / "4.state").read_bytes()
    for length in np.random.default_rng(0).integers(0, len(whole), 3):
        (states / "4.state").write_bytes(whole[:length])
        state, notices = checkpoint.newest_state(states)
        assert state.content["step"] == 2
        assert "4.state (" in notices[0]
    (states / ".4.state.0123.part").touch()
    resumed = trainer(train_options(data, 1), auto_resume=True)
    assert resumed.state.step == 2
    assert not (states / ".4.state.0123.part").exists()
    resumed.run()
    assert all(torch.equal(v, run.model.state_dict()[k]) for k, v in weights(resumed).items())


def interrupt(run, call, after, numbers=(signal.SIGTERM,)):
    """Send signals to this process when a method of the run is called after a step."""
    method = getattr(run, call)

    def interrupted(*args, **kwargs):
        if run.state.step == after:
            for number in numbers:
                os.kill(os.getpid(), number)
        return method(*args, **kwargs)

    setattr(run, call, interrupted)


@pytest.fixture(scope="module")
def three_steps(data, tmp_path_factory):
    """The weights after an uninterrupted training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        whole = trainer(train_options(data, 1, total_iter=3))
        whole.run()
    return weights(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_step_saves_and_leaves(data, three_steps, number):
    options = train_options(data, 1, total_iter=3)
    options["logger"]["save_checkpoint_freq"] = 3
    run = trainer(options)
    before = signal.getsignal(number)
    interrupt(run, "_update", 2, [number])
    with pytest.raises(Interrupted):
        run.run()
    assert run.state.step == 2
    assert "stopped after step 2: resumable with --auto_resume" in logged()
    assert signal.getsignal(number) == before
    resumed = trainer(options, auto_resume=True)
    assert resumed.state.step == 2
    resumed.run()
    assert all(torch.equal(v, three_steps[k]) for k, v in weights(resumed).items())


def test_a_second_ctrl_c_ends_at_once_and_an_ignored_signal_does_nothing(data):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    run = trainer(train_options(data, 1))
    interrupt(run, "_update", 1, [signal.SIGHUP])
    interrupt(run, "_update", 3, [signal.SIGINT, signal.SIGINT])
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert run.state.step == 3


def test_a_stop_ends_a_validation_between_two_images_and_loses_nothing(data):
    """At a step without a checkpoint, and at one with it."""
    options = train_options(data, 1, total_iter=3)
    options["val"]["val_freq"] = 1
    whole = trainer(options)
    whole.run()
    Path("experiments").rename("first")
    for step, due in ((1, False), (2, True)):
        run = trainer(options, auto_resume=True)
        restored = []

        def restore(*args, run=run, step=step, due=due, restored=restored, **kwargs):
            if run.state.step == step:
                # What the checkpoint's step calls for is on the disk before validation begins.
                assert Path(f"experiments/tiny_S1/training_states/{step}.state").exists() == due
                os.kill(os.getpid(), signal.SIGTERM)
                restored.append(1)
            return type(run.model).restore(run.model, *args, **kwargs)

        run.model.restore = restore
        with pytest.raises(Interrupted):
            run.run()
        assert (run.state.step, restored) == (step, [1])
        state = checkpoint.newest_state(run.experiment.states)[0].content
        assert (state["step"], state["validated"]) == (step, False)
    resumed = trainer(options, auto_resume=True)
    resumed.run()
    assert resumed.state.best == whole.state.best
    assert "step 2: val" in resumed.log_file.read_text()
    assert all(torch.equal(v, weights(whole)[k]) for k, v in weights(resumed).items())
    state = checkpoint.newest_state(run.experiment.states)[0].content
    assert (state["validated"], state["best"]) == (True, whole.state.best)


def test_a_rank_without_its_torchrun_saves_and_stops(data):
    options = parse_options(train_options(data, 1))
    run = Trainer(options, dataclasses.replace(ALONE, agent=os.getppid() + 1))
    with pytest.raises(Interrupted):
        run.run()
    assert checkpoint.newest_state(run.experiment.states)[0].content["step"] == 1


def test_a_folder_is_held_against_other_processes(data):
    script = (
        "import time; from pathlib import Path\n"
        "from hidiff.utils.files import _hold\n"
        "_hold(Path('experiments/tiny_S1'), 0.0)\n"
        "print('held', flush=True); time.sleep(600)\n"
    )
    with start(Path.cwd(), "-c", script) as other:
        assert other.output.readline() == "held\n"
        with pytest.raises(UserError, match=rf"experiments/tiny_S1 .*process {other.pid} on "):
            hold(Path("experiments/tiny_S1"), ALONE, patience=0.0)
        assert not Path("experiments/tiny_S1").exists()
        hold(Path("experiments/tiny_S2"), ALONE, patience=0.0)
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert trainer(train_options(data, 1), auto_resume=True).state.step == 0


def test_a_file_system_without_locks_is_a_notice(monkeypatch):
    def none(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "lockf", none)
    assert len(hold(Path("experiments/a"), ALONE, patience=0.0)) == 1


def test_an_attempt_that_saved_nothing_leaves_its_name_free(data):
    run = trainer(train_options(data, 1))
    run._accumulate = None
    with pytest.raises(TypeError):
        run.run()
    trainer(train_options(data, 1)).run()
    archived = list(Path("experiments").glob("tiny_S1_archived_*"))
    assert len(archived) == 1
    assert "failed" in next(archived[0].glob("*.log")).read_text()
    with pytest.raises(UserError, match="holds an experiment already"):
        trainer(train_options(data, 1))


def test_the_average_of_the_weights_follows_its_formula_and_resumes(data):
    options = train_options(data, 1, ema_decay=0.75, total_iter=3)
    options["logger"]["save_checkpoint_freq"] = 1
    run = trainer(options)
    average = {k: v.clone() for k, v in run.model.net_g.state_dict().items()}
    run.run()
    for step in range(1, 4):
        file = torch.load(f"experiments/tiny_S1/models/net_g_{step}.pth", weights_only=True)
        for key, value in file["params"].items():
            average[key] = 0.75 * average[key] + 0.25 * value
            torch.testing.assert_close(file["params_ema"][key], average[key])
    for step in (2, 3):
        Path(f"experiments/tiny_S1/training_states/{step}.state").unlink()
    resumed = trainer(options, auto_resume=True)
    assert resumed.state.step == 1
    resumed.run()
    for key, value in resumed.state.average.net_g.state_dict().items():
        assert torch.equal(value, run.state.average.net_g.state_dict()[key])


def test_validation_takes_the_average_by_option(data):
    for use_ema in (True, False):
        options = train_options(data, 1, ema_decay=0.5)
        options["val"]["use_ema"] = use_ema
        options["name"] = f"ema_{use_ema}"
        run = trainer(options)
        assert (run._to_validate is run.state.average) == use_ema
        assert run._to_validate.net_g.training != use_ema


def batches(folder, skip_bad):
    _, section = parse_options(train_options(folder, 1)).for_training()
    dataset = build_dataset(section)
    sampler = PhaseBatchSampler(
        size=len(dataset), plan=BatchPlan(section.phases(4), 1), rank=0, seed=0, crop_size=32,
        total_iter=4,
    )  # fmt: skip
    return training_batches(dataset, sampler, num_workers=1, skip_bad=skip_bad)


def test_an_image_that_disappears_stops_or_is_replaced(tmp_path):
    make_pairs(tmp_path / "train", 3)
    make_pairs(tmp_path / "test", 1)
    for skip in (False, True):
        loaded = batches(tmp_path, skip)
        (tmp_path / "train/input/scene-001.png").rename(tmp_path / "gone.png")
        if skip:
            seen = list(loaded)
            assert [len(batch["name"]) for batch in seen] == [2, 2, 1, 1]
            assert all("scene-001" not in batch["name"] for batch in seen)
            notices = [notice for batch in seen for notice in batch["notices"]]
            assert notices
            assert all("scene-001.png: cannot be read" in notice for notice in notices)
        else:
            with pytest.raises(UserError, match=r"scene-001\.png: "):
                list(loaded)
        (tmp_path / "gone.png").rename(tmp_path / "train/input/scene-001.png")


def test_without_any_usable_image_skipping_ends_too(tmp_path):
    make_pairs(tmp_path / "train", 2)
    make_pairs(tmp_path / "test", 1)
    loaded = batches(tmp_path, skip_bad=True)
    for path in (tmp_path / "train/input").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError):
        list(loaded)


def test_resuming_with_another_global_batch_is_refused(data):
    trainer(train_options(data, 1)).run()
    with pytest.raises(UserError, match="1 batches"):
        trainer(train_options(data, 1, reference_world_size=2), auto_resume=True)


def test_a_last_checkpoint_that_cannot_be_written_is_no_success(data, monkeypatch):
    run = trainer(train_options(data, 1))

    def full(content, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(UserError, match="No space left"):
        run.run()
    assert "training is complete" not in logged()


def test_loader_processes_leave_signals_to_the_trainer(tmp_path):
    """A scheduler's SIGTERM reaches the whole process group, workers included."""
    make_pairs(tmp_path / "train", 3)
    make_pairs(tmp_path / "test", 1)
    loaded = batches(tmp_path, skip_bad=False)
    next(loaded)
    import multiprocessing

    workers = multiprocessing.active_children()
    assert workers
    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
    assert len(list(loaded)) == 3


def test_auto_resume_prefers_the_runs_own_state(data):
    trainer(train_options(data, 1)).run()
    options = train_options(data, 1)
    options["path"] = {"resume_state": "experiments/tiny_S1/training_states/2.state"}
    assert trainer(options, auto_resume=True).state.step == 4
    assert trainer(options).state.step == 2
    states = sorted(p.name for p in Path("experiments/tiny_S1/training_states").iterdir())
    assert states == ["2.state", "4.state.superseded"]


def test_the_options_in_force_stand_in_the_experiments_folder(data):
    import yaml
    from small_data import write_yaml

    from hidiff.options import load_options

    write_yaml(Path("base.yml"), train_options(data, 1))
    path = write_yaml(Path("a.yml"), {"base": "base.yml", "logger": {"print_freq": 7}})
    run = Trainer(load_options(path, ["name=other", "train:total_iter=3"]), ALONE)
    folder = Path("experiments/other")
    text = next(folder.glob("*_a.yml")).read_text()
    assert "# --force_yml name=other\n# --force_yml train:total_iter=3\n" in text
    effective = yaml.safe_load(text)
    assert effective["train"]["total_iter"] == 3
    assert effective["logger"]["print_freq"] == 7
    assert parse_options(effective).sections == run.options.sections
    assert "set on the command line: name=other" in next(folder.glob("*.log")).read_text()


def test_a_signal_ends_a_wait_for_data_and_saves(data, monkeypatch):
    options = train_options(data, 1)
    options["datasets"]["train"]["num_worker_per_gpu"] = 1
    options["datasets"].pop("val")
    options["val"] = {}
    run = trainer(options)
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
    assert time.monotonic() - started < 10
    state, _ = checkpoint.newest_state(Path("experiments/tiny_S1/training_states"))
    assert state.content["step"] == run.state.step <= 2


def test_a_signal_ends_a_process_that_waits_for_another():
    script = (
        "import threading\n"
        "from hidiff.utils.distributed import StopRequest\n"
        "with StopRequest(grace=0.5):\n"
        "    print('ready', flush=True); threading.Event().wait()\n"
    )
    with start(Path.cwd(), "-c", script) as waiting:
        assert waiting.output.readline() == "ready\n"
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait(timeout=20) == EXIT_INTERRUPTED
