"""What test.py does, on tiny networks and pictures."""

import copy
import json
import logging
import math
import re
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from small_data import make_pairs, picture, test_options, write_rgb
from small_training import ALONE, compiled_blocks

from hidiff import UserError
from hidiff.archs.restormer import DepthwiseConv2d
from hidiff.cli import call
from hidiff.data import SyntheticBlurDataset
from hidiff.data.image import read_image
from hidiff.evaluation.record import ImageScore, read_scores
from hidiff.evaluation.results import add_row
from hidiff.evaluation.summary import remarks
from hidiff.evaluation.test_run import run_test
from hidiff.metrics import evaluate_pair
from hidiff.options import parse_options
from hidiff.restore.image import DEFAULT_SEED, restore_image
from hidiff.utils.files import file_sha256


@pytest.fixture
def tested(trained, data, monkeypatch):
    """results/tiny_test in the folder of the training."""
    monkeypatch.chdir(trained[0])
    assert run_test(parse_options(test_options(data)), ALONE, overwrite=True)
    return trained[0] / "results" / "tiny_test"


def test_testing_writes_pictures_and_the_record(tested, data):
    (scores,) = read_scores(tested)
    assert scores.key == ("small", "basicsr", "test")
    assert (scores.input, scores.target) == tuple(
        str(data / "test" / side) for side in ("input", "target")
    )
    assert (len(scores.images), len(scores.scored), scores.failed) == (2, 2, {})
    assert scores.seed == DEFAULT_SEED
    assert "HI_Diff_S2" in scores.model.description
    assert [image.name for image in scores.images] == ["scene-000", "scene-001"]
    for image in scores.images:
        restored = read_image(tested / "visualization" / "small" / f"{image.name}.png")
        sharp = read_image(data / "test" / "target" / f"{image.name}.png")
        blurry = read_image(data / "test" / "input" / f"{image.name}.png")
        assert restored.shape == (37, 43, 3)
        assert image.restored["psnr"] == pytest.approx(peak_signal_noise_ratio(sharp, restored))
        assert image.blurry["psnr"] == pytest.approx(peak_signal_noise_ratio(sharp, blurry))
    for metric in ("psnr", "ssim"):
        mean = math.fsum(image.restored[metric] for image in scores.images) / 2
        assert scores.mean()[metric] == pytest.approx(mean, rel=1e-12)


def test_the_benchmark_protocol_is_chosen_by_the_name_of_the_data_set(tested, trained, data):
    options = {**test_options(data), "name": "benchmark"}
    options["val"]["protocol"] = "benchmark"
    section = options["datasets"].pop("test_1")
    for index, name in enumerate(("HIDE", "RealBlur_J", "other"), start=1):
        options["datasets"][f"test_{index}"] = {**section, "name": name}
    assert run_test(parse_options(options), ALONE)
    scores = read_scores(trained[0] / "results/benchmark")
    assert [data.protocol for data in scores] == ["matlab", "realblur", "basicsr"]
    pairs = [
        [read_image(folder / f"scene-00{i}.png")
         for folder in (tested / "visualization/small", data / "test/target")]
        for i in range(2)
    ]  # fmt: skip
    for result in scores:
        found = [evaluate_pair(*pair, protocol=result.protocol) for pair in pairs]
        for name in ("psnr", "ssim"):
            assert result.mean()[name] == pytest.approx(sum(s[name] for s in found) / 2)
    assert any("980" in remark for remark in remarks(scores[1]))
    assert remarks(scores[2]) == []


def test_what_data_folders_hold_besides_images_is_said(trained, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(trained[0])
    make_pairs(tmp_path / "test", 2)
    (tmp_path / "test" / "input" / "other.avif").write_bytes(b"x")
    monkeypatch.setattr(logging.getLogger("hidiff"), "propagate", True)
    with caplog.at_level("INFO", "hidiff"):
        run_test(parse_options({**test_options(tmp_path), "name": "notices"}), ALONE)
    assert "other.avif" in caplog.text


def test_every_option_of_speed_arrives_in_testing(trained, data, monkeypatch):
    monkeypatch.chdir(trained[0])
    monkeypatch.setattr("hidiff.models.compilation.check_compiler", lambda device, where: None)
    seen = []

    def look(model, *others, **options):
        modes = {m.kernels for m in model.modules() if isinstance(m, DepthwiseConv2d)}
        seen.append(
            (len(compiled_blocks(model)) > 10, modes, options["val"].precision, model.strip_rows)
        )
        raise ZeroDivisionError

    monkeypatch.setattr("hidiff.evaluation.test_run.evaluate", look)
    options = {**test_options(data), "name": "speed", "kernels": "eager"}
    for more in ({"strip_rows": 5}, {"compile": True, "precision": "bf16"}):
        changed = options | {"val": options["val"] | more}
        with pytest.raises(ZeroDivisionError):
            run_test(parse_options(changed), ALONE, overwrite=True)
    assert seen == [(False, {"eager"}, "tf32", 5), (True, {"eager"}, "bf16", "whole")]


def test_several_seeds_report_their_deviation(tested, trained, data):
    options = {**test_options(data), "name": "seeds"}
    assert run_test(parse_options(options), ALONE, seeds=3)
    results = trained[0] / "results" / "seeds"
    (scores,) = read_scores(results)
    assert [(image.name, image.seed) for image in scores.images] == [
        (f"scene-00{i}", seed) for seed in (0, 1, 2) for i in range(2)
    ]
    psnr = np.array([image.restored["psnr"] for image in scores.images]).reshape(3, 2)
    assert scores.mean()["psnr"] == pytest.approx(psnr.mean())
    assert scores.deviation()["psnr"] == pytest.approx(psnr.mean(axis=1).std(ddof=1))
    assert read_scores(tested)[0].mean()["psnr"] == pytest.approx(psnr[0].mean())
    pictures = [p / "visualization/small/scene-000.png" for p in (results, tested)]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_a_result_depends_neither_on_other_images_nor_on_the_seed_of_the_training(
    tested, trained, data, tmp_path
):
    for side in ("input", "target"):
        (tmp_path / "test" / side).mkdir(parents=True)
        shutil.copy(data / "test" / side / "scene-001.png", tmp_path / "test" / side)
    options = {**test_options(tmp_path), "name": "one_image", "manual_seed": 4}
    assert run_test(parse_options(options), ALONE)
    (images, pictures), (all_images, all_pictures) = (
        content(folder) for folder in (trained[0] / "results/one_image", tested)
    )
    assert pictures == {"scene-001.png": all_pictures["scene-001.png"]}
    assert images == all_images[1:]


def test_other_results_are_refused_or_moved_aside(tested, trained, data):
    (tested / "mine.txt").write_text("kept")
    options = test_options(data)
    options["val"]["protocol"] = "matlab"
    with pytest.raises(UserError, match=r"tiny_test.*val\.protocol.*--overwrite"):
        run_test(parse_options(copy.deepcopy(options)), ALONE)
    assert run_test(parse_options(options), ALONE, overwrite=True)
    assert not (tested / "mine.txt").exists()
    (archived,) = (trained[0] / "results").glob("tiny_test_archived_*/mine.txt")
    assert archived.read_text() == "kept"
    shutil.rmtree(archived.parent)
    shutil.rmtree(tested)
    tested.mkdir()
    (tested / "mine.txt").write_text("of something else")
    with pytest.raises(UserError, match="tiny_test holds other results"):
        run_test(parse_options(test_options(data)), ALONE)
    shutil.rmtree(tested)


def test_without_ground_truth_it_restores_and_does_not_score(trained, data, monkeypatch):
    monkeypatch.chdir(trained[0])
    options = {**test_options(data), "name": "blind"}
    del options["datasets"]["test_1"]["dataroot_gt"]
    assert run_test(parse_options(options), ALONE)
    results = trained[0] / "results" / "blind"
    assert len(list((results / "visualization" / "small").iterdir())) == 2
    (scores,) = read_scores(results)
    assert (len(scores.images), scores.scored, scores.mean()) == (2, [], {})


def test_synthetic_blur_is_a_test_set(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained[0])
    for number in range(2):
        write_rgb(tmp_path / f"photo-{number}.png", picture(number, 72, 64))
    options = {**test_options(tmp_path), "name": "synthetic"}
    roots = [str(tmp_path)]
    options["datasets"]["test_1"] = {
        "type": "SyntheticBlurDataset",
        "name": "blurred",
        "dataroot_gt": roots,
        "min_size": 64,
        "scale": [0.5, 0.5],
    }
    assert run_test(parse_options(options), ALONE)
    (scores,) = read_scores(trained[0] / "results" / "synthetic")
    assert [image.name for image in scores.scored] == ["photo-0", "photo-1"]
    blurry = SyntheticBlurDataset(
        where="x", dataroot_gt=roots, min_size=64, scale=(0.5, 0.5)
    ).whole(1)
    assert blurry[0].shape == (36, 32, 3)
    assert scores.scored[1].blurry["psnr"] == pytest.approx(peak_signal_noise_ratio(*blurry[::-1]))


def test_photographs_without_ground_truth_stay_what_they_are(trained, tmp_path, monkeypatch):
    """As PNG files of 8 or 16 bits, with what stands beside their pixels."""
    monkeypatch.chdir(trained[0])
    deep = np.random.default_rng(0).integers(0, 65536, (24, 16, 4), np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    grey = Image.fromarray(picture(1, 24, 16)).convert("L")
    grey.save(tmp_path / "grey.jpg", exif=exif, icc_profile=b"profile")
    options = {**test_options(tmp_path), "name": tmp_path.name}
    section = options["datasets"]["test_1"]
    del section["dataroot_gt"]
    section["dataroot_lq"] = str(tmp_path)
    assert run_test(parse_options(options), ALONE)
    pictures = trained[0] / "results" / tmp_path.name / "visualization/small"
    restored = cv2.imread(str(pictures / "deep.png"), cv2.IMREAD_UNCHANGED)
    assert restored.dtype == np.uint16
    assert np.array_equal(restored[..., 3], deep[..., 3])
    assert len(np.unique(restored[..., :3])) > 500
    with Image.open(pictures / "grey.png") as image:
        assert (image.mode, image.size) == ("L", (24, 16))
        assert image.info["icc_profile"] == b"profile"
        assert (image.getexif()[0x010F], image.getexif()[0x0112]) == ("Maker", 1)


def test_an_image_that_is_damaged_or_too_small_is_reported_and_the_rest_goes_on(
    trained, tmp_path, monkeypatch
):
    monkeypatch.chdir(trained[0])
    make_pairs(tmp_path / "test", 3)
    path = tmp_path / "test" / "input" / "scene-001.png"
    path.write_bytes(path.read_bytes()[:99])
    for side in ("input", "target"):
        write_rgb(tmp_path / "test" / side / "small.png", picture(5, 8, 10))
    options = {**test_options(tmp_path), "name": "damaged"}
    del options["val"]["save_img"]
    assert run_test(parse_options(options), ALONE) is False
    results = trained[0] / "results/damaged"
    (scores,) = read_scores(results)
    assert (len(scores.images), len(scores.scored)) == (4, 2)
    assert set(scores.failed) == {"scene-001", "small"}
    # It is the metric that the small one is too small for.
    assert len(list((results / "visualization/small").iterdir())) == 3


class Killed(BaseException):
    """Stands for a kill."""


def content(folder):
    """What a test has left, but for what depends on the clock: images, pictures."""
    images = [image for scores in read_scores(folder) for image in scores.images]
    for image in images:
        image.seconds = None
    pictures = {p.name: p.read_bytes() for p in folder.glob("visualization/*/*")}
    return images, pictures


@pytest.fixture
def interrupted(trained, tmp_path, monkeypatch):
    """(options, result folder) of a test with two seeds that was killed at the seventh image."""
    monkeypatch.chdir(trained[0])
    make_pairs(tmp_path / "test", 4, height=24, width=24)
    options = {**test_options(tmp_path), "name": tmp_path.name}
    names = []

    def kill(*arguments, **others):
        names.append(others["name"])
        if len(names) == 7:
            raise Killed
        return restore_image(*arguments, **others)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("hidiff.evaluation.evaluator.restore_image", kill)
        run_test(parse_options(copy.deepcopy(options)), ALONE, seeds=2)
    return options, trained[0] / "results" / tmp_path.name


def resume(options, monkeypatch, seeds=2):
    """The names of the images that a second call restores."""
    names = []

    def note(*arguments, **others):
        names.append(others["name"])
        return restore_image(*arguments, **others)

    with monkeypatch.context() as patch:
        patch.setattr("hidiff.evaluation.evaluator.restore_image", note)
        complete = run_test(parse_options(copy.deepcopy(options)), ALONE, seeds=seeds)
    return names, complete


def test_a_killed_test_goes_on_and_notices_what_was_changed(interrupted, monkeypatch):
    options, results = interrupted
    file = results / "rows" / "0.jsonl"
    rows = file.read_text().splitlines()[1:]
    assert [json.loads(row)["score"]["name"][-1] for row in rows] == list("012301")
    # A row is changed, the last one is cut off, and of the pictures one is gone and one another.
    rows[0] = re.sub(r'"psnr":\d', '"psnr":9', rows[0])
    file.write_text("\n".join(rows)[:-30])
    pictures = results / "visualization/small"
    (pictures / "scene-001.png").unlink()
    (pictures / "scene-002.png").write_bytes((pictures / "scene-003.png").read_bytes())
    names, complete = resume(options, monkeypatch)
    assert complete
    assert [name[-1] for name in names] == list("012") + list("123")
    resumed = content(results)
    assert run_test(parse_options(copy.deepcopy(options)), ALONE, seeds=2, overwrite=True)
    assert content(results) == resumed
    assert resume(options, monkeypatch) == ([], True)
    shutil.rmtree(results)
    assert run_test(parse_options(copy.deepcopy(options)), ALONE, seeds=2)
    assert content(results) == resumed


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"kernels": "eager"}, "kernels"),
        ("weights", "the weights of net_d"),
        ("seeds", "--seeds"),
    ],
)
def test_another_test_does_not_go_on(interrupted, monkeypatch, change, place):
    options, results = interrupted
    before = sorted(results.rglob("*"))
    if change == "weights":
        monkeypatch.setattr("hidiff.evaluation.test_run.load_pretrained", lambda *_, **__: ([], {}))
    elif change != "seeds":
        options |= change
    with pytest.raises(UserError, match=place):
        resume(options, monkeypatch, seeds=3 if change == "seeds" else 2)
    assert sorted(results.rglob("*")) == before


def test_going_on_tries_again_what_failed_and_what_has_changed(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained[0])
    make_pairs(tmp_path / "test", 4, height=24, width=24)
    options = {**test_options(tmp_path), "name": tmp_path.name}
    damaged, changed = (tmp_path / f"test/input/scene-00{i}.png" for i in (1, 3))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:99])
    assert not run_test(parse_options(copy.deepcopy(options)), ALONE)
    damaged.write_bytes(whole)
    write_rgb(changed, picture(9, 24, 24))
    # Neither the place of the program's threads nor that of the weights changes a score.
    options["val"]["num_workers"] = 0
    assert resume(options, monkeypatch, seeds=1) == (["scene-001", "scene-003"], True)


def test_a_disk_that_is_full_at_the_end_loses_nothing(tested, data, monkeypatch):
    def full(path, *_):
        raise UserError(f"{path}: cannot be written (No space left on device)")

    options = {**test_options(data), "name": "full"}
    with monkeypatch.context() as patch:
        patch.setattr("hidiff.evaluation.record.write_text", full)
        with pytest.raises(UserError, match=r"scores\.json"):
            run_test(parse_options(copy.deepcopy(options)), ALONE)
    assert not (tested.parent / "full" / "scores.json").exists()
    assert resume(options, monkeypatch, seeds=1) == ([], True)
    assert content(tested.parent / "full") == content(tested)


def test_a_row_that_cannot_be_written_names_its_file(tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/0.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"rows/0\.jsonl"):
        add_row(tmp_path, 0, "small", [], ImageScore(name="a", seed=3), None)


def test_larger_sharp_images_are_cropped(tested, trained, data, tmp_path):
    """As in the release: the part at the top left."""
    for index in range(2):
        names = [f"{side}/scene-00{index}.png" for side in ("input", "target")]
        for name in names:
            write_rgb(tmp_path / "test" / name, read_image(data / "test" / name))
        sharp = read_image(tmp_path / "test" / names[1])
        if index == 1:
            write_rgb(tmp_path / "test" / names[1], np.pad(sharp, ((0, 4), (0, 9), (0, 0))))
    options = {**test_options(tmp_path), "name": "larger"}
    assert run_test(parse_options(options), ALONE)
    images, pictures = content(trained[0] / "results" / "larger")
    same_images, same_pictures = content(tested)
    assert pictures == same_pictures
    assert [image.cropped for image in images] == [False, True]
    assert [image.restored for image in images] == [image.restored for image in same_images]
    (remark,) = remarks(read_scores(trained[0] / "results" / "larger")[0])
    assert "scene-001" in remark
    assert "scene-000" not in remark
    assert remarks(read_scores(tested)[0]) == []


def test_testing_needs_weights_for_every_network(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = test_options(data)
    with pytest.raises(UserError, match=r"pretrain_network_g: "):
        run_test(parse_options(copy.deepcopy(options)), ALONE)
    del options["path"]
    with pytest.raises(UserError, match=r"path\.pretrain_network_g: "):
        run_test(parse_options(options), ALONE)


def test_a_model_is_tested_on_a_folder_without_an_option_file(tested, trained, data, capsys):
    arguments = ["--model", "tiny_S2", "--data", str(data / "test")]
    assert call("test", *arguments) == 0
    (folder,) = (trained[0] / "results").glob("test_tiny_S2_*_test")
    (scores,) = read_scores(folder)
    assert scores.protocol == "basicsr"
    assert [image.restored for image in scores.images] == [
        image.restored for image in read_scores(tested)[0].images
    ]
    file = trained[0] / "experiments/tiny_S2/models/tiny_S2_4.safetensors"
    assert scores.model.sha256 == file_sha256(file)
    assert scores.model.trained_on
    assert call("test", *arguments, "--protocol", "matlab", "--name", "named") == 0
    assert read_scores(trained[0] / "results/named")[0].protocol == "matlab"
    for mistake in (["--model", "tiny_S2"], ["--data", "x"], ["-opt", "x.yml", *arguments]):
        with pytest.raises(UserError):
            call("test", *mistake)
