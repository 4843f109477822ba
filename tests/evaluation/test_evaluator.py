"""Restoring and scoring a data set: the same with and without threads, and never stuck."""

import math
import signal
import threading
import time
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_data import make_pairs, picture, test_options, train_options, write_rgb
from tqdm import TMonitor

from hidiff import UserError, build_model
from hidiff.data.dataset import PairedImageIRDataset
from hidiff.data.image import read_image, to_float, to_uint8
from hidiff.engine.validation import Validator
from hidiff.evaluation.evaluator import build_metrics, build_test_scorer, evaluate
from hidiff.evaluation.record import ImageScore
from hidiff.metrics import calculate_psnr, calculate_ssim
from hidiff.options import ValOptions, parse_options
from hidiff.restore.image import image_generator, restore_image, to_image
from hidiff.utils.distributed import Processes
from hidiff.utils.workers import AHEAD, available_cores, ordered_pipeline, thread_count

CPU = torch.device("cpu")
ALONE = Processes(0, 1, CPU)


class Copying(torch.nn.Module):
    """A model whose restored image is the blurry one, after `seconds`."""

    restores_from_gt = False

    def __init__(self, seconds=0.0):
        super().__init__()
        self.net_g = torch.nn.Linear(1, 1)
        self.seconds = seconds
        self.threads = set()

    def restore(self, lq, *, generator, progress=None):
        self.threads.add(threading.current_thread())
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


def own_threads():
    """Running threads but for the one that tqdm keeps."""
    return {t for t in threading.enumerate() if not isinstance(t, TMonitor)}


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


def test_order_and_thread_stay_when_later_images_are_done_first():
    def scorer(restored, target):
        time.sleep(0.03 if restored[0, 0, 0] % 3 == 0 else 0)
        return mean_of(restored, target)

    model, order = Copying(), []
    results = run(model, Made(10), scorer, num_workers=3, on_image=lambda i, *_: order.append(i))
    assert order == list(range(10))
    assert [result.restored["mean"] for result in results] == list(range(10))
    assert model.threads == {threading.main_thread()}


def failing_in(place, failure):
    """(model, data set, scorer, on_image), one of which fails at the fourth image."""

    def fail(*_):
        raise failure

    model, dataset, parts = Copying(), Made(9), {"scorer": mean_of, "on_image": None}

    class Failing(Made):
        def __getitem__(self, index):
            return fail() if index == 3 else super().__getitem__(index)

    if place == "dataset":
        dataset = Failing(9)
    elif place == "model":
        restore = model.restore
        model.restore = lambda lq, **other: (
            fail() if abs(lq[0, 0, 0, 0] * 255 - 3) < 0.5 else restore(lq, **other)
        )
    elif place == "scorer":
        parts["scorer"] = lambda r, t: fail() if r[0, 0, 0] == 3 else mean_of(r, t)
    else:
        parts["on_image"] = lambda index, *_: fail() if index == 3 else None
    return model, dataset, parts


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("place", ["dataset", "model", "scorer", "on_image"])
@pytest.mark.parametrize("failure", [RuntimeError("a bug"), KeyboardInterrupt()], ids=["bug", "^C"])
def test_an_exception_ends_the_evaluation_and_its_threads(place, workers, failure):
    model, dataset, parts = failing_in(place, failure)
    model.train()
    before = own_threads()
    # The exception is kept, and by its traceback all that going out of scope would end.
    with pytest.raises(type(failure)) as caught:
        run(model, dataset, **parts, num_workers=workers)
    assert own_threads() == before
    assert caught.value is failure
    assert model.training


@pytest.mark.timeout(60)
def test_an_interrupt_while_waiting_for_a_thread_ends_the_evaluation():
    def scorer(restored, target):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.1)
        return {}

    before = own_threads()
    with pytest.raises(KeyboardInterrupt):
        run(Copying(), Made(1), scorer, num_workers=2)
    assert own_threads() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_cannot_be_written_is_an_error(tmp_path, workers):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError):
        run(Copying(), Made(5), num_workers=workers,
            picture_path=lambda name: tmp_path / "file" / f"{name}.png")  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
def test_the_model_keeps_its_mode(training):
    model = Copying().train(training)
    modes = []
    run(model, Made(2), num_workers=1, on_image=lambda *_: modes.append(model.training))
    assert modes == [False, False]
    assert model.training == training


@pytest.mark.timeout(60)
@pytest.mark.parametrize("threads", [1, 3])
def test_no_more_than_a_handful_of_images_is_in_progress(threads):
    """The first `work` lets the readers run as far ahead as they may."""
    lock, started, yielded, most = threading.Lock(), [], [], []
    bound = threads + AHEAD

    def read(key):
        with lock:
            started.append(key)
            most.append(len(started) - len(yielded))
        return key

    def work(key):
        deadline = time.monotonic() + 20
        while key == 0 and len(started) < bound:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(0.02)
        return key

    def finish(key):
        time.sleep(0.01 * (key % 3))
        return key

    for key in ordered_pipeline(range(12), load=read, compute=work, save=finish, workers=threads):
        yielded.append(key)
    assert yielded == list(range(12))
    assert max(most) == bound


def test_closing_it_early_ends_the_threads_and_begins_nothing_more():
    before, begun = own_threads(), []

    def read(key):
        begun.append(key)
        return key

    jobs = ordered_pipeline(range(50), load=read, compute=abs, save=abs, workers=2)
    assert [next(jobs), next(jobs)] == [0, 1]
    jobs.close()
    assert own_threads() == before
    count = len(begun)
    assert count <= 2 + 2 + AHEAD
    time.sleep(0.05)
    assert len(begun) == count


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


def test_threads_read_and_score_while_the_model_restores():
    """Sleeping takes no core, so this holds on a busy machine too: 8 × 0.15 s in a row."""

    def scorer(restored, target):
        time.sleep(0.06)
        return {}

    def seconds(workers):
        started = time.perf_counter()
        run(Copying(0.03), Made(8, seconds=0.06), scorer, num_workers=workers)
        return time.perf_counter() - started

    serial, overlapping = seconds(0), seconds(4)
    assert serial >= 8 * 0.15
    assert overlapping < 0.6 * serial


def test_seconds_are_those_of_restoring_alone():
    results = run(Copying(0.05), Made(4, seconds=0.2), num_workers=4)
    for result in results:
        assert 0.05 <= result.seconds < 0.2


def test_threads_that_are_taken(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert thread_count("auto", CPU) == 0
    assert thread_count("auto", torch.device("cuda", 0)) == min(4, available_cores())
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(2 * available_cores()))
    assert thread_count("auto", torch.device("cuda", 0)) == 1
    for device in (CPU, torch.device("cuda", 0)):
        assert [thread_count(wanted, device) for wanted in (0, 1, 7)] == [0, 1, 7]


def test_pixels_are_rounded_as_numpy_rounds_them():
    """Every half-way value and its neighbours, and what lies outside of [0, 1]."""
    halves = ((np.arange(-3, 260) + 0.5) / 255).astype(np.float32)
    near = [np.nextafter(halves, np.float32(side)) for side in (-9, 9)]
    exact = np.arange(256, dtype=np.float32) / np.float32(255)
    spread = np.random.default_rng(0).uniform(-0.5, 1.5, 30_000).astype(np.float32)
    special = np.array([np.inf, -np.inf, 0.0, -0.0, 1e-45, 3e38], np.float32)
    values = np.concatenate([halves, *near, exact, spread, special])
    image = values[: len(values) // 3 * 3].reshape(3, 1, -1)
    expected = np.rint(np.clip(image, 0.0, 1.0) * np.float32(255)).astype(np.uint8)
    ours = to_image(torch.from_numpy(image)[None])
    assert ours.dtype == np.uint8
    assert ours.flags.c_contiguous
    assert np.array_equal(ours, expected.transpose(1, 2, 0))
    assert np.array_equal(ours, to_uint8(image.transpose(1, 2, 0)))
    assert len(np.unique(ours)) == 256


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


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("self_ensemble", [False, True])
def test_symmetries_on_the_device_are_those_of_numpy(tmp_path, stage, self_ensemble):
    """Bit by bit; an image whose sides differ, so that a wrong turn would not even fit."""
    model = build_model(train_options(tmp_path, stage)).eval()
    item = {"lq": torch.rand(3, 19, 24), "gt": torch.rand(3, 19, 24), "name": "x"}
    total = 0
    for index in range(8 if self_ensemble else 1):
        turned = [np.rot90(item[side].numpy(), index // 2, (1, 2)) for side in ("lq", "gt")]
        turned = [image[:, ::-1] if index % 2 else image for image in turned]
        restored = model.restore(
            *(torch.from_numpy(np.ascontiguousarray(image))[None] for image in turned),
            generator=image_generator(0, "x"),
        )
        array = restored[0].permute(1, 2, 0).numpy()
        total = total + np.rot90(array[::-1] if index % 2 else array, -(index // 2))
    expected = total / 8 if self_ensemble else total
    ours = restore_image(model, item["lq"], gt=item["gt"], name="x", self_ensemble=self_ensemble)
    assert np.array_equal(ours.permute(1, 2, 0).numpy(), expected)
