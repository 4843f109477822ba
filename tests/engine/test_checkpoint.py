"""Training states: what is saved and kept, which one is taken, and what may change meanwhile."""

import errno
import re
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_training import (
    assert_same_weights,
    build,
    log_of,
    parameters,
    quick_options,
    spoil,
    train,
    validated,
)

from hidiff import UserError
from hidiff.archs.baselines.nafnet import NAFNet
from hidiff.engine import checkpoint
from hidiff.weights.model_file import read_model_file

STATES = Path("experiments/quick/training_states")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def _four_steps(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, parameters(train(quick_options(data)))


@pytest.fixture
def four_steps(_four_steps, tmp_path):
    """The weights after four steps, whose experiment lies in the current folder."""
    shutil.copytree(_four_steps[0] / "experiments", tmp_path / "experiments")
    return _four_steps[1]


def names(folder):
    return sorted(path.name for path in Path(folder).glob("[!.]*"))


def damage(path):
    path.write_bytes(path.read_bytes()[:100])


def test_the_newest_states_and_all_models_are_kept(four_steps):
    assert names(STATES) == ["2.state", "3.state", "4.state"]
    assert len(names("experiments/quick/models")) == 4
    file = read_model_file(Path("experiments/quick/models/quick_4.safetensors"))
    for key, tensor in four_steps.items():
        name, _, rest = key.partition(".")
        assert torch.equal(file.networks[name][rest], tensor)


def test_keep_leaves_the_best_and_the_last_models(data):
    options = validated(quick_options(data, total_iter=5), data, 1)
    options["logger"]["keep"] = 2
    run = build(options)
    scores = iter([3.0, 9.0, 1.0, 2.0, 4.0])

    def validate(model, step, best, writer, stop):
        value = next(scores)
        if value > best.setdefault("ValSet/psnr", {"value": 0.0})["value"]:
            best["ValSet/psnr"] = {"value": value, "step": step}
        return True

    run.validator.run = validate
    run.run()
    assert names("experiments/quick/models") == [f"quick_{step}.safetensors" for step in (2, 4, 5)]


def test_damaged_states_are_passed_over_and_resuming_repeats_their_steps(data, four_steps):
    length = (STATES / "4.state").stat().st_size
    whole = (STATES / "4.state").read_bytes()
    for cut in np.random.default_rng(0).integers(0, length, 3):
        (STATES / "4.state").write_bytes(whole[:cut])
        state, (notice,) = checkpoint.newest_state(STATES)
        assert state.content["step"] == 3
        assert "4.state" in notice
    damage(STATES / "3.state")
    (STATES / ".4.state.0123.part").touch()
    resumed = build(quick_options(data), auto_resume=True)
    assert resumed.state.step == 2
    assert not (STATES / ".4.state.0123.part").exists()
    resumed.run()
    assert_same_weights(parameters(resumed), four_steps)


def test_a_changed_bit_is_noticed(four_steps):
    content = bytearray((STATES / "4.state").read_bytes())
    weights = four_steps["net_g.intro.weight"].numpy().tobytes()
    content[content.index(weights) + 5] ^= 1
    (STATES / "4.state").write_bytes(content)
    state, (_,) = checkpoint.newest_state(STATES)
    assert state.content["step"] == 3


def test_weights_that_are_not_finite_are_passed_over(four_steps):
    content = torch.load(STATES / "4.state", weights_only=True)
    next(iter(content["networks"]["net_g"].values())).view(-1)[0] = float("nan")
    checkpoint.save_atomically(content, STATES / "4.state")
    state, (notice,) = checkpoint.newest_state(STATES)
    assert state.content["step"] == 3
    assert "4.state: net_g: " in notice


def test_where_no_state_can_be_read_it_is_not_started_over(data, four_steps):
    for path in STATES.iterdir():
        damage(path)
    with pytest.raises(UserError, match=r"4\.state .*3\.state .*2\.state "):
        build(quick_options(data), auto_resume=True)


def test_no_states_is_no_error(data, tmp_path):
    assert checkpoint.newest_state(tmp_path / "nothing") == (None, [])
    assert train(quick_options(data, total_iter=1), auto_resume=True).state.step == 1


def test_weights_are_no_training_state(tmp_path):
    torch.save({"params": {"a": torch.zeros(1)}}, tmp_path / "net_g.pth")
    with pytest.raises(UserError, match="no training state"):
        checkpoint.load_state(tmp_path / "net_g.pth", "path.resume_state")


def test_a_state_by_its_path_leaves_later_ones_aside(data, four_steps):
    options = quick_options(data)
    options["path"] = {"resume_state": str(STATES / "2.state")}
    with pytest.raises(UserError, match=r"path\.resume_state.*--auto_resume"):
        build(options, auto_resume=True)
    assert names(STATES) == ["2.state", "3.state", "4.state"]
    assert_same_weights(parameters(train(options)), four_steps)
    assert names(STATES) == [
        "2.state",
        "3.state",
        "3.state.superseded",
        "4.state",
        "4.state.superseded",
    ]


def test_an_existing_experiment_is_not_overwritten(data, four_steps):
    files = {p: p.stat().st_mtime_ns for p in Path("experiments").rglob("[!.]*")}
    with pytest.raises(UserError, match=r"experiments/quick .*--auto_resume"):
        train(quick_options(data))
    assert {p: p.stat().st_mtime_ns for p in Path("experiments").rglob("[!.]*")} == files


def test_an_attempt_that_saved_nothing_leaves_its_name_free(data):
    run = build(quick_options(data))
    run.gradients.accumulate = None
    with pytest.raises(TypeError):
        run.run()
    assert "ERROR: process 0 of 1 failed: Traceback" in log_of()
    again = build(quick_options(data), auto_resume=True)
    assert again.state.step == 0
    (archived,) = Path("experiments").glob("quick_archived_*")
    assert "TypeError" in next(archived.glob("*.log")).read_text()


def test_options_without_influence_may_change_and_are_listed(data, four_steps):
    options = quick_options(data)
    options["logger"]["print_freq"] = 7
    options["datasets"]["train"]["num_worker_per_gpu"] = 1
    # What is said and what is left out may be the same.
    options["train"] |= {"precision": "tf32", "compile": False, "activation_checkpointing": []}
    build(options, auto_resume=True)
    changed = re.findall(r"changed since the run was started: (\S+): ", log_of())
    assert changed == ["datasets.train.num_worker_per_gpu", "logger.print_freq"]


def test_options_with_influence_are_refused_or_allowed_by_a_flag(data, four_steps):
    options = quick_options(data, warmup_iter=3)
    options["train"]["optim_total"]["lr"] = 0.5
    with pytest.raises(UserError, match="--allow_changed_options") as refused:
        build(options, auto_resume=True)
    for path in ("train.warmup_iter: ", "train.optim_total.lr: 0.001 → 0.5"):
        assert path in str(refused.value)
    options["train"]["total_iter"] = 5
    options["train"]["optim_total"]["weight_decay"] = 0.25
    resumed = train(options, auto_resume=True, allow_changed_options=True)
    assert resumed.state.step == 5
    assert "train.optim_total.lr: 0.001 → 0.5" in log_of()
    (group,) = resumed.state.optimizer.param_groups
    assert group["lr"] == resumed.lr(5) > 0.001
    assert group["weight_decay"] == 0.25


def test_a_training_is_lengthened_where_its_steps_stay_the_same(data):
    options = quick_options(data, scheduler={"type": "MultiStepLR", "milestones": [2]})
    train(options)
    options["train"]["total_iter"] = 6
    longer = train(options, auto_resume=True)
    assert longer.state.step == 6
    Path("experiments").rename("before")
    assert_same_weights(parameters(train(options)), parameters(longer))


def test_a_changed_default_is_noticed(data, four_steps, monkeypatch):
    """Options that are left out are saved with their values."""
    content = torch.load(STATES / "4.state", weights_only=True)
    assert "img_channel" in NAFNet.__init__.__kwdefaults__
    content["options"]["network_g"]["img_channel"] = 5
    checkpoint.save_atomically(content, STATES / "4.state")
    with pytest.raises(UserError, match=r"network_g\.img_channel: 5 → 3"):
        build(quick_options(data), auto_resume=True)


def test_another_network_or_global_batch_is_refused(data, four_steps):
    options = quick_options(data)
    options["network_g"]["width"] = 8
    for allow in (False, True):
        with pytest.raises(UserError, match=r"step 4 .*"):
            build(options, auto_resume=True, allow_changed_options=allow)
    with pytest.raises(UserError, match=r"reference_world_size.*: 1 → 2"):
        build(quick_options(data, reference_world_size=2), auto_resume=True)


@pytest.mark.parametrize(
    ("how", "value"),
    [(lambda loss: loss * float("nan"), "nan"), (lambda loss: loss + float("inf"), "inf")],
    ids=["gradient", "loss alone"],
)
def test_a_step_that_is_not_finite_is_skipped_and_names_its_images(data, how, value):
    run = build(quick_options(data))
    before = parameters(run)
    spoil(run, {2}, how)
    run.train_step(1)
    after_one = parameters(run)
    run.train_step(2)
    assert_same_weights(parameters(run), after_one)
    assert all(parameter.grad is None for parameter in run.model.parameters())
    assert run.state.bad_steps == 1
    run.train_step(3)
    assert run.state.bad_steps == 0
    assert any(not torch.equal(v, before[k]) for k, v in parameters(run).items())
    assert re.search(rf"step 2: .*l_pix {value}.*images: scene-00\d, scene-00\d", log_of())


def test_nothing_is_saved_in_a_streak_of_skipped_steps(data):
    run = build(quick_options(data, total_iter=9, max_bad_steps=3))
    spoil(run, {3, 5, 6, 7})
    with pytest.raises(UserError, match=r"3 steps after step 4,.*checkpoint is that of step 4"):
        run.run()
    assert names(STATES) == ["1.state", "2.state", "4.state"]
    assert names("experiments/quick/models") == [f"quick_{step}.safetensors" for step in (1, 2, 4)]
    assert "--allow_changed_options" in log_of()


def test_a_training_that_ends_in_a_streak_is_no_success(data):
    run = build(quick_options(data))
    spoil(run, {4})
    with pytest.raises(UserError, match="checkpoint is that of step 3"):
        run.run()
    assert "training is complete" not in log_of()


def test_a_full_disk_ends_the_run_with_whole_checkpoints(data, monkeypatch):
    run = build(quick_options(data))
    save = checkpoint.torch.save

    def full(content, file):
        if run.state.step == 3:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, file)

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(UserError, match="No space left"):
        run.run()
    assert "No space left" in log_of()
    assert sorted(path.name for path in STATES.iterdir()) == ["1.state", "2.state"]
    monkeypatch.undo()


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


def test_the_average_of_the_weights_follows_its_formula_and_resumes(data):
    options = quick_options(data, ema_decay=0.75, total_iter=3)
    run = build(options)
    average = {k: v.clone() for k, v in run.model.net_g.state_dict().items()}
    run.run()
    for step in range(1, 4):
        file = read_model_file(Path(f"experiments/quick/models/quick_{step}.safetensors"))
        for key, value in file.networks["net_g"].items():
            average[key] = 0.75 * average[key] + 0.25 * value
            torch.testing.assert_close(file.averages["net_g"][key], average[key])
    for step in (2, 3):
        (STATES / f"{step}.state").unlink()
    resumed = train(options, auto_resume=True)
    expected = run.state.average.net_g.state_dict()
    assert_same_weights(resumed.state.average.net_g.state_dict(), expected)
