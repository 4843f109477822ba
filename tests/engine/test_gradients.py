"""Micro-batches and accumulation: the same steps in less memory."""

import itertools

import pytest
import torch
from small_data import train_options
from small_training import build, parameters, quick_options, train

from hidiff import UserError
from hidiff.data import transfer


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


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


def hidiff_options(data, stage, size, change=None, **more):
    """Two steps, of 5 patches of 8² and of 3 of 16²."""
    options = train_options(data, stage, total_iter=2, use_grad_clip=True, **more)
    options["train"] |= {
        "pixel_opt": {"type": "L1Loss"},
        **({"pixel_diff_opt": {"type": "L1Loss"}} if stage == 2 else {}),
        **({"micro_batch": size} if size else {}),
    }
    options["datasets"]["train"] |= {
        "batch_size_per_gpu": 5, "mini_batch_sizes": [5, 3], "iters": [1, 1],
        "gt_size": 16, "gt_sizes": [8, 16],
    }  # fmt: skip
    del options["datasets"]["val"]
    options["val"] = {}
    options["logger"]["use_tb_logger"] = False
    if change:
        change(options)
    return options


@pytest.fixture(scope="module")
def stage1(data, tmp_path_factory):
    """A training of stage 1, from which every stage 2 starts."""
    folder = tmp_path_factory.mktemp("stage1")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(hidiff_options(data, 1, None))
    return folder / "experiments/tiny_S1"


def all_steps(options, place, monkeypatch, prepare=lambda trainer: None):
    """Losses and gradient norm of each step, and the trainer after them."""
    place.mkdir()
    monkeypatch.chdir(place)
    trainer = build(options)
    prepare(trainer)
    seen = []
    trainer.reporter.step = lambda step, lr, losses, norm, waited: seen.append(
        [norm, *losses.values()]
    )
    trainer.run()
    return torch.tensor(seen), trainer


def assert_equal_steps(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-10, atol=1e-14)
    weights = parameters(theirs[1])
    for name, tensor in parameters(ours[1]).items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", STEPS)
def test_steps_are_those_of_whole_batches(data, stage1, tmp_path, monkeypatch, float64, case):
    stage, more, change = STEPS[case]
    whole, cut = (hidiff_options(data, stage, size, change, **more) for size in (None, 2))
    if stage == 2:
        whole["path"] = cut["path"] = {"stage1": str(stage1)}
    expected = all_steps(whole, tmp_path / "whole", monkeypatch)
    found = all_steps(cut, tmp_path / "cut", monkeypatch)
    assert [list(found[1].micro_batches.parts(phase)) for phase in (0, 1)] == [
        [slice(0, 2), slice(2, 4), slice(4, 5)],
        [slice(0, 2), slice(2, 3)],
    ]
    assert_equal_steps(found, expected)


CUDA = torch.cuda.OutOfMemoryError("CUDA out of memory.")
ONEDNN = RuntimeError("could not create a primitive")


def memory_for(trainer, images, error=CUDA):
    """Let the second part of a step fail where it has more images; gives the failures."""
    forward = trainer.model.forward
    calls, failures = itertools.count(1), []

    def failing(lq, gt, **draws):
        if len(lq) > images and next(calls) % 2 == 0:
            failures.append(len(lq))
            raise error
        return forward(lq, gt, **draws)

    trainer.model.forward = failing
    return failures


@pytest.mark.parametrize("error", [CUDA, ONEDNN])
def test_memory_that_runs_out_changes_no_step(data, tmp_path, monkeypatch, float64, error):
    """Half of a batch's gradient was there when it ran out."""
    whole = quick_options(data, reference_world_size=2, total_iter=2)
    expected = all_steps(whole, tmp_path / "whole", monkeypatch)
    failures = []
    cut = quick_options(data, reference_world_size=2, total_iter=2, micro_batch="auto")
    found = all_steps(
        cut, tmp_path / "cut", monkeypatch,
        lambda trainer: failures.append(memory_for(trainer, 1, error)),
    )  # fmt: skip
    assert failures == [[2]]
    assert found[1].micro_batches.halved == {0: 1}
    assert_equal_steps(found, expected)


def test_memory_that_runs_out_while_a_batch_is_copied_loses_no_batch(data, monkeypatch):
    expected = parameters(train(quick_options(data, micro_batch="auto")))
    options = {**quick_options(data, micro_batch="auto"), "name": "again"}
    run = build(options)
    copy, calls = transfer.to_device, itertools.count(1)

    def failing(*arguments):
        if next(calls) == 3:
            raise CUDA
        return copy(*arguments)

    monkeypatch.setattr(transfer, "to_device", failing)
    run.run()
    assert run.micro_batches.halved
    for name, tensor in parameters(run).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("set_already", "advice"),
    [
        ({}, {"train.micro_batch", "train.activation_checkpointing", "gt_size"}),
        ({"micro_batch": "auto"}, {"train.activation_checkpointing", "gt_size"}),
        ({"micro_batch": "auto", "activation_checkpointing": [1, 2, 3, 4]}, {"gt_size"}),
    ],
)
def test_one_image_that_does_not_fit_ends_the_run_with_advice(data, set_already, advice):
    options = hidiff_options(data, 1, None, **set_already)
    run = build(options)

    def failing(lq, gt, **draws):
        raise ONEDNN

    run.model.forward = failing
    with pytest.raises(UserError) as caught:
        run.run()
    said = {"train.micro_batch", "train.activation_checkpointing", "gt_size"}
    assert {word for word in said if word in str(caught.value)} == advice
    assert "phase 1" in str(caught.value)


def test_a_resumed_run_keeps_to_the_images_that_fitted(data, monkeypatch):
    options = quick_options(data, micro_batch="auto", total_iter=3)
    run = build(options)
    memory_for(run, 1)
    run.total_iter = 2
    run.run()
    resumed = build(options, auto_resume=True)
    assert resumed.micro_batches.size(0) == 1


def test_accumulation_gives_the_gradient_of_the_larger_batch(data, float64):
    """One process standing for two: its gradient is that of both batches together."""
    run = build(quick_options(data, reference_world_size=2))
    batches = list(itertools.islice(build(
        {**quick_options(data, reference_world_size=2), "name": "reader"}).batches, 2))  # fmt: skip
    run.gradients.accumulate(1, run.batches)
    accumulated = [parameter.grad.clone() for parameter in run.model.parameters()]
    run.model.zero_grad()
    lq, gt = (torch.cat([batch[side] for batch in batches]) for side in ("lq", "gt"))
    sum(run.model(lq, gt).values()).backward()
    for ours, parameter in zip(accumulated, run.model.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("size", [0, 6, "all"])
def test_sizes_that_cannot_be_are_refused(data, size):
    options = hidiff_options(data, 1, None)
    options["train"]["micro_batch"] = size
    with pytest.raises(UserError, match=r"train\.micro_batch"):
        build(options)
