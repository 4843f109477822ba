"""The command `hidiff restore`, with a tiny network that was trained."""

import signal

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import picture, test_options
from small_training import ALONE

from hidiff import UserError
from hidiff.cli import call
from hidiff.cli import main as hidiff
from hidiff.cli.restore import find_device
from hidiff.data.dataset import to_tensor
from hidiff.data.image import read_image
from hidiff.evaluation.test_run import run_test
from hidiff.options import LocalOptions, parse_options
from hidiff.restore.image import restore_image, to_image
from hidiff.weights.find import load_model


def main(arguments):
    return call("restore", *map(str, arguments))


@pytest.fixture
def here(trained, monkeypatch):
    monkeypatch.chdir(trained[0])
    return trained[0]


def photographs(folder, count=2):
    folder.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(picture(index, 21, 30)).save(folder / f"{index}.png")
    return folder


def test_it_restores_as_test_py_does(here, tmp_path):
    photos, out = photographs(tmp_path / "in"), tmp_path / "out"
    assert main([str(photos), "-o", str(out), "-m", "tiny_S2"]) == 0
    options = {**test_options(tmp_path), "name": "own"}
    options["datasets"]["test_1"] = {
        "type": "PairedImageIRDataset", "name": "own", "dataroot_lq": str(photos),
    }  # fmt: skip
    assert run_test(parse_options(options), ALONE)
    for index in range(2):
        ours = read_image(out / f"{index}.png")
        assert np.array_equal(ours, read_image(f"results/own/visualization/own/{index}.png"))
        assert not np.array_equal(ours, picture(index, 21, 30))


def test_ensemble_and_seeds_are_means(here, tmp_path):
    photos = photographs(tmp_path / "in", 1)
    arguments = [str(photos / "0.png"), "-m", "experiments/tiny_S2", "--device", "cpu"]
    arguments += ["--ensemble", "--seeds", "2", "--suffix", "_sharp", "--format", "tif"]
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 0
    model, image = load_model("tiny_S2").model, to_tensor(picture(0, 21, 30))
    expected = sum(
        restore_image(model, image, name="0", seed=seed, self_ensemble=True) for seed in (0, 1)
    )
    found = read_image(tmp_path / "out/0_sharp.tif")
    assert np.abs(found.astype(int) - to_image(expected / 2)).max() <= 1


def test_tiles(here, tmp_path):
    photos, out = photographs(tmp_path / "in", 1), tmp_path / "out"
    tiles = ["--local", "tile", "--size", "16", "--overlap", "8"]
    assert main([str(photos), "-o", str(out), "-m", "tiny_S2", *tiles]) == 0
    model, image = load_model("tiny_S2").model, to_tensor(picture(0, 21, 30))
    local = LocalOptions(mode="tile", size=16, overlap=8)
    expected = restore_image(model, image, name="0", local=local)
    assert np.array_equal(read_image(out / "0.png"), to_image(expected))
    with pytest.raises(UserError, match="--overlap"):
        main([str(photos), "-o", str(out), "-m", "tiny_S2", *tiles, "--overlap", "16"])


def test_failures_are_told_and_are_the_exit_code(here, tmp_path, capsys):
    photos = photographs(tmp_path / "in")
    (photos / "1.png").write_bytes(b"no image")
    arguments = ["restore", str(photos), "-o", str(tmp_path / "out"), "-m", "tiny_S2"]
    assert hidiff(arguments) == 1
    assert "1.png" in capsys.readouterr().out.splitlines()[-1]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0.png"]
    before = (tmp_path / "out/0.png").stat().st_mtime_ns
    assert hidiff(arguments) == 1
    assert (tmp_path / "out/0.png").stat().st_mtime_ns == before
    for mistake in (["-m", "nothing"], ["--device", "tpu"], ["-o", "/dev/null/x"]):
        with pytest.raises(SystemExit) as caught:
            hidiff([*arguments, *mistake])
        assert caught.value.code == 2


def test_the_page_shows_what_was_restored(here, tmp_path):
    photos, out = photographs(tmp_path / "in"), tmp_path / "out"
    arguments = [str(photos), "-o", str(out), "-m", "tiny_S2", "--compare"]
    assert main(arguments) == 0
    page = (out / "compare.html").read_text()
    assert all(f"{index}.png" in page for index in range(2))
    assert main([*arguments, "--embed"]) == 0  # nothing is restored again, and the page is new
    assert len((out / "compare.html").read_text()) > len(page)
    (out / "compare.html").write_text("mine")
    with pytest.raises(UserError, match="compare.html"):
        main(arguments)


def test_the_page_shows_what_earlier_calls_restored_and_the_steps(here, tmp_path):
    photos, out = photographs(tmp_path / "in"), tmp_path / "out"
    arguments = ["-o", str(out), "-m", "tiny_S2", "--compare"]
    for index in range(2):
        more = ["--trajectory"] if index == 1 else []
        assert main([str(photos / f"{index}.png"), *arguments, *more]) == 0
    page = (out / "compare.html").read_text()
    assert page.count("data-after=") == 2
    assert page.count("data-steps=") == 1
    steps = sorted(path.name for path in (out / "1_trajectory").iterdir())
    assert steps[0] == "z0.png"
    assert all(f"1_trajectory/{name}" in page for name in steps)
    assert np.array_equal(read_image(out / "1.png"), read_image(out / "1_trajectory/z0.png"))
    (out / "0.png").unlink()
    assert main([str(photos / "1.png"), *arguments]) == 0
    assert (out / "compare.html").read_text().count("data-after=") == 1


def test_options_without_effect_are_refused(here, tmp_path):
    photos = photographs(tmp_path / "in", 1)
    arguments = [str(photos), "-o", str(tmp_path / "out"), "-m", "tiny_S2"]
    mistakes = (["--size", "64"], ["--embed"], ["--trajectory", "--seeds", "2"])
    for mistake in mistakes:
        with pytest.raises(UserError, match=mistake[0]):
            main([*arguments, *mistake])
    with pytest.raises(UserError, match="--size"):
        main([*arguments, "--local", "tile", "--size", "0"])
    assert main([str(photos / "0.png"), "-o", str(tmp_path / "sharp.tiff"), "-m", "tiny_S2"]) == 0
    assert read_image(tmp_path / "sharp.tiff").shape == (21, 30, 3)


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:0", "gpu", "meta", ""):
        with pytest.raises(UserError, match="--device"):
            find_device(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("auto") == torch.device("cuda")
    assert find_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="cuda:2"):
        find_device("cuda:2")


def test_ctrl_c_keeps_what_is_finished(here, tmp_path, monkeypatch):
    photos, out = photographs(tmp_path / "in", 4), tmp_path / "out"

    def interrupted(model, image, *, name, **options):
        if name == "2":
            signal.raise_signal(signal.SIGINT)
        return restore_image(model, image, name=name, **options)

    arguments = ["restore", str(photos), "-o", str(out), "-m", "tiny_S2"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr("hidiff.restore.image.restore_image", interrupted)
        hidiff(arguments)
    assert caught.value.code == 130
    assert sorted(path.name for path in out.iterdir()) == ["0.png", "1.png"]
    assert hidiff(arguments) == 0
    assert len(list(out.iterdir())) == 4
