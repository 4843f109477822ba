"""Batches cut into micro-batches: the same steps in less memory."""

import copy

import pytest
import torch
from small_data import make_pairs, train_options
from small_training import ALONE, parameters, train

from hidiff import UserError
from hidiff.engine import checkpoint, micro_batch
from hidiff.engine.trainer import Trainer
from hidiff.options import parse_options


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_pairs(folder / "train", 3)
    return folder


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def split(options):
    options["model_type"] = "HI_Diff_S2_Split"
    del options["train"]["pixel_opt"], options["train"]["pixel_diff_opt"]


def with_reverse_noise(options):
    options["diffusion_schedule"]["reverse_noise"] = True


def with_sums(options):
    options["train"]["pixel_opt"] = {"type": "MSELoss", "reduction": "sum"}


STEPS = {
    "stage 1, accumulated": (1, {"reference_world_size": 2}, None),
    "stage 1, recomputed, sums": (1, {"activation_checkpointing": [1, 4]}, with_sums),
    "stage 2, reverse noise": (2, {}, with_reverse_noise),
    "split training": (2, {}, split),
}


def options_of(data, stage, size, change=None, *, iters=(1, 1), **more):
    options = train_options(data, stage, total_iter=sum(iters), use_grad_clip=True, **more)
    options["train"] |= {
        "pixel_opt": {"type": "L1Loss"},
        **({"pixel_diff_opt": {"type": "L1Loss"}} if stage == 2 else {}),
        **({"micro_batch": size} if size else {}),
    }
    options["datasets"]["train"] |= {
        "batch_size_per_gpu": 5, "mini_batch_sizes": [5, 3], "iters": list(iters),
        "gt_size": 16, "gt_sizes": [8, 16],
    }  # fmt: skip
    del options["datasets"]["val"]
    options["val"] = {}
    if change:
        change(options)
    return options


@pytest.fixture(scope="module")
def stage1(data, tmp_path_factory):
    """A folder with a training of stage 1, from which every stage 2 starts."""
    folder = tmp_path_factory.mktemp("stage1")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = options_of(data, 1, None)
        options["train"]["total_iter"] = 1
        train(options)
    return folder / "experiments/tiny_S1"


def all_steps(options, place, monkeypatch, prepare=lambda trainer: None):
    """Losses and gradient norm of each step, and the weights after them."""
    place.mkdir()
    monkeypatch.chdir(place)
    trainer = Trainer(parse_options(copy.deepcopy(options)), ALONE)
    prepare(trainer)
    seen = []
    trainer.reporter.step = lambda step, lr, losses, norm: seen.append(
        [norm, *(loss.item() for loss in losses.values())]
    )
    trainer.run()
    return torch.tensor(seen), parameters(trainer), trainer


@pytest.mark.parametrize("case", STEPS)
def test_steps_are_those_of_whole_batches(data, stage1, tmp_path, monkeypatch, float64, case):
    stage, more, change = STEPS[case]
    whole, cut = (options_of(data, stage, size, change, **more) for size in (None, 2))
    if stage == 2:
        whole["path"] = cut["path"] = {"stage1": str(stage1)}
    whole, weights, _ = all_steps(whole, tmp_path / "whole", monkeypatch)
    seen, ours, trainer = all_steps(cut, tmp_path / "cut", monkeypatch)
    assert [list(trainer.micro_batches.parts(phase)) for phase in (0, 1)] == [
        [slice(0, 2), slice(2, 4), slice(4, 5)],
        [slice(0, 2), slice(2, 3)],
    ]
    torch.testing.assert_close(seen, whole, rtol=1e-10, atol=1e-14)
    for name, tensor in weights.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-10, atol=1e-12)


def out_of_memory_in(trainer, step, patch):
    """Let the backward pass of the step's second part fail, while more than 2 are computed."""
    forward = trainer.model.forward
    calls = []

    def failing(lq, gt, **draws):
        if trainer.state.step + 1 == step and len(lq) > 2:
            calls.append(len(lq))
            if len(calls) == 2:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return forward(lq, gt, **draws)

    patch.setattr(trainer.model, "forward", failing)
    return calls


def test_memory_that_runs_out_changes_no_weight(data, stage1, tmp_path, monkeypatch, float64):
    whole, options = (
        options_of(data, 2, size, reference_world_size=2) | {"path": {"stage1": str(stage1)}}
        for size in (None, 4)
    )
    whole, weights, _ = all_steps(whole, tmp_path / "whole", monkeypatch)
    failures = []
    seen, ours, trainer = all_steps(
        options, tmp_path / "cut", monkeypatch,
        lambda trainer: failures.append(out_of_memory_in(trainer, 1, monkeypatch)),
    )  # fmt: skip
    assert failures == [[4, 4]]  # a part of each of the two batches
    assert trainer.state.micro_batches == {0: 2}
    torch.testing.assert_close(seen, whole, rtol=1e-10, atol=1e-14)
    for name, tensor in weights.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-10, atol=1e-12)


def test_one_image_that_does_not_fit_ends_the_run(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = Trainer(parse_options(options_of(data, 1, 2)), ALONE)

    def failing(lq, gt):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(trainer.model, "forward", failing)
    with pytest.raises(UserError, match=r"train\.activation_checkpointing"):
        trainer.run()
    assert trainer.state.micro_batches == {0: 1}


def test_resuming_ends_where_an_uninterrupted_run_ends(data, tmp_path, monkeypatch):
    """The sizes that were measured are kept, though less memory would be found."""
    monkeypatch.setattr(micro_batch, "largest_that_fits", lambda *_: 3)
    options = options_of(data, 1, "auto", iters=(1, 2))
    _, weights, trainer = all_steps(options, tmp_path / "whole", monkeypatch)
    assert trainer.state.micro_batches == {0: 3, 1: 3}
    (tmp_path / "resumed").mkdir()
    monkeypatch.chdir(tmp_path / "resumed")
    first = Trainer(parse_options(copy.deepcopy(options)), ALONE)
    first.total_iter = 2
    first.run()
    monkeypatch.setattr(micro_batch, "largest_that_fits", lambda *_: 1)
    resumed = train(options, auto_resume=True)
    assert resumed.state.micro_batches == {0: 3, 1: 3}
    for name, tensor in parameters(resumed).items():
        assert torch.equal(tensor, weights[name]), name


def test_a_state_of_an_earlier_version_has_no_sizes(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = Trainer(parse_options(options_of(data, 1, 2)), ALONE)
    content = trainer.state.content()
    del content["micro_batches"]
    checkpoint.save_state(content, tmp_path, 0)
    found, _ = checkpoint.newest_state(tmp_path)
    trainer.state.micro_batches = {0: 3}
    trainer.state.restore(found.content)
    assert trainer.state.micro_batches == {}


def test_auto_takes_what_fits(data, tmp_path, monkeypatch):
    """With memory for about half of a large batch."""
    monkeypatch.chdir(tmp_path)
    options = options_of(data, 1, "auto")
    options["datasets"]["train"] |= {
        "batch_size_per_gpu": 16, "mini_batch_sizes": [16, 3], "gt_size": 40, "gt_sizes": [40, 8],
    }  # fmt: skip
    peaks = {1: 110, 2: 200}
    monkeypatch.setattr(
        micro_batch, "training_step", lambda model, count, size, device: lambda: count
    )
    monkeypatch.setattr(
        micro_batch, "measure_with_memory", lambda work, device: (0.0, peaks[work()] * 1e9)
    )
    monkeypatch.setattr(micro_batch, "free_memory", lambda device: 741e9 / micro_batch.SHARE)
    trainer = Trainer(parse_options(options), ALONE)
    trainer.micro_batches.measure(0, trainer.model, ALONE)
    trainer.micro_batches.measure(1, trainer.model, ALONE)
    assert trainer.state.micro_batches == {0: 8, 1: 3}  # 20 + 8·90 = 740 of 741
    monkeypatch.setattr(micro_batch, "free_memory", lambda device: 150e9)
    trainer.micro_batches.measure(0, trainer.model, ALONE)
    assert trainer.state.micro_batches[0] == 1


def test_measuring_leaves_nothing_behind(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = Trainer(parse_options(options_of(data, 1, "auto")), ALONE)
    before, state = parameters(trainer), torch.get_rng_state()
    assert "phase 1" in trainer.micro_batches.measure(0, trainer.model, ALONE)
    assert 1 <= trainer.state.micro_batches[0] <= 5
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in parameters(trainer).items())


@pytest.mark.parametrize("size", [0, 6, "all"])
def test_sizes_that_cannot_be_are_refused(data, tmp_path, monkeypatch, size):
    monkeypatch.chdir(tmp_path)
    options = options_of(data, 1, None)
    options["train"]["micro_batch"] = size
    with pytest.raises(UserError, match=r"train\.micro_batch"):
        Trainer(parse_options(options), ALONE)
