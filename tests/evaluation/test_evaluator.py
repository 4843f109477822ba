"""Restoring and scoring a data set: the same with and without threads."""

import math
import threading
import time
import weakref
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_data import make_pairs, picture, test_options, train_options, write_rgb

from hidiff import UserError, build_model
from hidiff.data.dataset import PairedImageIRDataset
from hidiff.data.image import read_image, to_float
from hidiff.engine.validation import Validator
from hidiff.evaluation.evaluator import build_metrics, build_test_scorer, evaluate
from hidiff.evaluation.record import ImageScore
from hidiff.metrics import calculate_psnr, calculate_ssim
from hidiff.options import ValOptions, parse_options
from hidiff.restore.image import image_generator
from hidiff.utils.distributed import Processes
from hidiff.utils.workers import AHEAD

CPU = torch.device("cpu")
ALONE = Processes(0, 1, CPU)


class Copying(torch.nn.Module):
    """A model whose restored image is the blurry one, after `seconds`."""

    restores_from_gt = False

    def __init__(self, seconds=0.0):
        super().__init__()
        self.net_g = torch.nn.Linear(1, 1)
        self.seconds = seconds

    def restore(self, lq, *, generator, progress=None):
        time.sleep(self.seconds)
        return lq.clone()


class Made:
    """A data set of `count` grey images that takes `seconds` to read one."""

    def __init__(self, count, seconds=0.0):
        self.pairs = [SimpleNamespace(name=str(index)) for index in range(count)]
        self.seconds, self.has_gt = seconds, True
        self.alive = weakref.WeakSet()

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        time.sleep(self.seconds)
        item = {side: torch.full((3, 12, 12), index / 255) for side in ("lq", "gt")}
        self.alive.add(item["lq"])
        return {**item, "name": self.pairs[index].name}


def mean_of(restored, target):
    """A scorer that says which image it saw."""
    return {"mean": float(restored.mean())}


def run(model, dataset, scorer=mean_of, **arguments):
    if "num_workers" in arguments:
        arguments["val"] = ValOptions(num_workers=arguments.pop("num_workers"))
    return evaluate(model, dataset, scorer, ALONE, seed=3, label="test", **arguments)


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(1)
    return build_model(test_options(tmp_path))


@pytest.fixture
def damaged(tmp_path):
    """Six pairs: one truncated, one too small for the network and one for the metric."""
    make_pairs(tmp_path, 6, height=37, width=43)
    path = tmp_path / "input" / "scene-001.png"
    path.write_bytes(path.read_bytes()[:99])
    for name, size in (("scene-002", (4, 4)), ("scene-004", (9, 10))):
        for side in ("input", "target"):
            write_rgb(tmp_path / side / f"{name}.png", picture(7, *size))
    return PairedImageIRDataset(
        where="test", dataroot_lq=str(tmp_path / "input"), dataroot_gt=str(tmp_path / "target")
    )


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_are_those_of_a_plain_loop_however_many_threads(model, damaged, tmp_path, workers):
    seen = []
    results = run(
        model,
        damaged,
        build_metrics({"psnr": {"type": "calculate_psnr"}, "ssim": {"type": "calculate_ssim"}}),
        score_blurry=True,
        picture_path=lambda name: tmp_path / "restored" / f"{name}.png",
        on_image=lambda *call: seen.append((*call, threading.current_thread())),
        num_workers=workers,
    )
    names = [f"scene-{index:03d}" for index in range(6)]
    assert [result.name for result in results] == names
    assert "truncated" in results[1].error
    assert "4×4" in results[2].error
    assert results[4].error.startswith("restored but not scored: ")
    restored = [index for index in range(6) if index not in (1, 2)]
    assert [(index, score) for index, score, *_ in seen] == list(enumerate(results))
    assert [index for index, _, pictures, _ in seen if pictures] == restored
    assert {thread for *_, thread in seen} == {threading.main_thread()}
    assert sorted(p.stem for p in (tmp_path / "restored").iterdir()) == [names[i] for i in restored]
    model.eval()
    for index in restored:
        name, pictures = names[index], seen[index][2]
        blurry, sharp = (read_image(tmp_path / s / f"{name}.png") for s in ("input", "target"))
        lq = torch.from_numpy(to_float(blurry)).permute(2, 0, 1)[None]
        output = model.restore(lq, generator=image_generator(3, name))[0].permute(1, 2, 0).numpy()
        expected = (blurry, np.rint(np.clip(output, 0, 1) * 255).astype(np.uint8), sharp)
        for ours, theirs in zip(pictures, expected, strict=True):
            assert np.array_equal(ours, theirs)
        assert np.array_equal(read_image(tmp_path / "restored" / f"{name}.png"), expected[1])
        assert results[index].seconds > 0
        if index != 4:
            assert results[index].error is None
            for scores, image in ((results[index].restored, expected[1]),
                                  (results[index].blurry, blurry)):  # fmt: skip
                assert scores == {
                    "psnr": calculate_psnr(image, sharp),
                    "ssim": calculate_ssim(image, sharp),
                }
    assert [results[index].seconds for index in (1, 2)] == [None, None]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("failing", [True, False])
def test_the_model_keeps_its_mode(training, failing):
    model, modes = Copying().train(training), []

    def look(*_):
        modes.append(model.training)
        if failing:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) if failing else nullcontext():
        run(model, Made(2), num_workers=1, on_image=look)
    assert set(modes) == {False}
    assert model.training == training


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_cannot_be_written_is_an_error(tmp_path, workers):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError):
        run(Copying(), Made(5), num_workers=workers,
            picture_path=lambda name: tmp_path / "file" / f"{name}.png")  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_what_was_read_is_let_go_after_restoring(workers):
    dataset, alive = Made(12), []

    def scorer(restored, target):
        time.sleep(0.02)
        return {}

    run(Copying(), dataset, scorer, num_workers=workers,
        on_image=lambda *_: alive.append(len(dataset.alive)))  # fmt: skip
    assert max(alive) < workers + AHEAD
    assert len(dataset.alive) == 0


def test_seconds_are_those_of_restoring_alone():
    results = run(Copying(0.05), Made(4, seconds=0.2), num_workers=4)
    for result in results:
        assert 0.05 <= result.seconds < 0.2


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_result_that_is_not_finite_is_a_failed_image(tmp_path, value):
    model = Copying()
    model.restore = lambda lq, **_: torch.where(lq == 2 / 255, value, lq)
    results = run(model, Made(4), picture_path=lambda name: tmp_path / f"{name}.png")
    assert [bool(result.error) for result in results] == [False, False, True, False]
    assert "2: " in results[2].error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png", "3.png"]


@pytest.mark.parametrize(
    ("metrics", "protocol"),
    [
        ({"psnr": {"type": "calculate_psnr"}, "ssim": {"type": "calculate_ssim"}}, "basicsr"),
        ({"psnr": {"type": "calculate_psnr", "crop_border": 0, "better": "higher"}}, "basicsr"),
        ({"psnr": {"type": "calculate_psnr", "crop_border": 4}}, "custom"),
        ({"psnr_y": {"type": "calculate_psnr", "test_y_channel": True}}, "custom"),
        ({"psnr": {"type": "calculate_ssim"}}, "custom"),
    ],
)
def test_own_metrics_are_a_protocol_of_their_own(metrics, protocol):
    assert build_test_scorer(ValOptions(metrics=metrics), "mine")[0] == protocol
    assert build_test_scorer(ValOptions(metrics=metrics, protocol="matlab"), "x")[0] == "matlab"


def test_without_metrics_and_protocol_a_test_scores_as_the_release_does():
    protocol, scorer = build_test_scorer(ValOptions(), "mine")
    assert protocol == "basicsr"
    assert set(scorer(picture(0, 16, 16), picture(1, 16, 16))) == {"psnr", "ssim"}


def test_validation_writes_no_picture_outside_of_its_folder(tmp_path):
    options = train_options(tmp_path, 1)
    options["val"]["save_img"] = True
    data = {"ValSet": Made(2)}
    data["ValSet"].pairs[1].name = "../../x"
    with pytest.raises(UserError, match=r"\.\./\.\./x"):
        Validator(parse_options(options), data, ALONE, tmp_path)


def test_results_that_are_there_are_not_made_again():
    dataset, seen = Made(6), []
    done = {index: ImageScore(name="there") for index in (0, 3, 4)}
    two = [
        evaluate(
            *(Copying(), dataset, mean_of, SimpleNamespace(**vars(ALONE) | {
                "rank": rank, "world_size": 2, "is_main": True, "gather": lambda x: [x]})),
            seed=3, label="test", done=done, on_image=lambda index, *_: seen.append(index),
        )
        for rank in range(2)
    ]  # fmt: skip
    assert seen == [1, 5, 2]
    assert [[result.name for result in results] for results in two] == [
        ["there", "1", "there", "there", "5"],
        ["there", "2", "there", "there"],
    ]
