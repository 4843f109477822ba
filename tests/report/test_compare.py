"""The command `hidiff compare`, with tiny networks that were trained."""

import csv
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_browser import CHROMIUM, Browser
from small_data import make_pairs, picture, test_options, write_rgb, write_yaml
from small_training import ALONE

from hidiff import UserError
from hidiff.cli import call
from hidiff.cli import main as hidiff
from hidiff.data.image import read_image
from hidiff.evaluation import evaluator
from hidiff.evaluation.test_run import run_test
from hidiff.metrics import evaluate_pair
from hidiff.options import parse_options
from hidiff.report.candidates import by_label, find_data, parse_models
from hidiff.report.page import ends
from hidiff.report.scatter import AROUND, LEFT, SIDE, scatter, ticks
from hidiff.weights.find import find_model


def main(arguments):
    return call("compare", *map(str, arguments))


QUICK = ["--repeats", "0", "--resamples", "50", "--pictures", "0"]


@pytest.fixture
def here(trained, monkeypatch):
    """The folder in which tiny_S2 was trained, without the results of other tests."""
    monkeypatch.chdir(trained[0])
    shutil.rmtree("results", ignore_errors=True)
    return trained[0]


@pytest.fixture
def pairs(tmp_path):
    """Three pairs in `own`."""
    names = make_pairs(tmp_path / "own", 3, height=29, width=35)
    return tmp_path / "own", names


def rows(name):
    with Path(f"results/{name}/compare.csv").open(newline="") as file:
        return {row["model"]: row for row in csv.DictReader(file)}


def psnr(folder, data, names):
    """Of each picture in a folder, by the metric itself."""
    sides = [[read_image(place / f"{n}.png") for n in names] for place in (folder, data / "target")]
    return np.array([evaluate_pair(*pair)["psnr"] for pair in zip(*sides, strict=True)])


def test_models_modes_and_pictures_are_compared(here, pairs):
    data, names = pairs
    models = ["tiny_S2", "tiled=experiments/tiny_S2", f"blurry={data / 'input'}"]
    more = ["--local", "tiled=tile", "--size", "32", "--overlap", "8", "--repeats", "1"]
    assert hidiff(["compare", *models, "--data", str(data), *more, "-o", "c"]) == 0
    found = rows("c")
    assert list(found) == ["tiny_S2", "tiled", "blurry"]
    scores = {
        "tiny_S2": psnr(here / "results/c_tiny_S2/visualization/own", data, names),
        "tiled": psnr(here / "results/c_tiled/visualization/own", data, names),
        "blurry": psnr(data / "input", data, names),
    }
    assert not np.array_equal(scores["tiny_S2"], scores["tiled"])
    for label, row in found.items():
        assert float(row["psnr"]) == pytest.approx(scores[label].mean(), rel=1e-12)
        gain = scores[label] - scores["tiny_S2"]
        assert float(row["psnr_difference"]) == pytest.approx(gain.mean(), abs=1e-12)
        low, high = float(row["psnr_low"]), float(row["psnr_high"])
        assert gain.min() <= low <= gain.mean() + 1e-12 and gain.mean() - 1e-12 <= high
        assert (row["images"], row["failed"], row["protocol"]) == ("3", "0", "basicsr")
    networks = find_model("tiny_S2").restoring.values()
    count = sum(p.numel() for network in networks for p in network.parameters())
    for label in ("tiny_S2", "tiled"):
        assert int(found[label]["parameters"]) == count
        assert float(found[label]["seconds"]) > 0 and int(found[label]["macs"]) > 0
    assert found["tiled"]["settings"] == "local tile 32/8, tf32"
    assert [found["blurry"][key] for key in ("seconds", "parameters", "macs")] == ["", "", ""]

    page = (here / "results/c/compare.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    # Three pairs; of each both ends, with the detail's place, blurry, three models and sharp.
    assert page.count("<svg") == page.count("<details") == 3
    assert page.count("<figure") == 3 * 2 * 6
    table = (here / "results/c/compare.md").read_text()
    assert f"| tiled | {scores['tiled'].mean():.3f} |" in table


def test_what_is_done_is_not_done_again(here, pairs, monkeypatch):
    data, _ = pairs
    call = ["tiny_S2", f"blurry={data / 'input'}", "--data", str(data), *QUICK, "-o", "c"]
    restored, restore = [], evaluator.restore_image

    def counted(model, item, **options):
        if len(restored) == 1 and item["name"].endswith("1"):
            restored.append("stopped")
            raise KeyboardInterrupt
        restored.append(item["name"])
        return restore(model, item, **options)

    monkeypatch.setattr(evaluator, "restore_image", counted)
    with pytest.raises(KeyboardInterrupt):
        main(call)
    assert main(call) == 0
    assert restored == ["scene-000", "stopped", "scene-001", "scene-002"]
    first = (here / "results/c/compare.csv").read_text()
    monkeypatch.setattr("hidiff.report.run.evaluate_pair", None)
    assert main(call) == 0
    assert len(restored) == 4
    assert (here / "results/c/compare.csv").read_text() == first
    # What has become of another mode is kept under another name.
    assert main([*call, "--precision", "tiny_S2=bf16"]) == 0
    assert len(restored) == 7
    assert len(list((here / "results").glob("c_tiny_S2_archived_*"))) == 1


def test_what_fails_is_named_and_the_rest_is_compared(here, pairs, capsys):
    data, _ = pairs
    other = data.parent / "other"
    write_rgb(other / "scene-000.png", picture(7, 29, 35))
    write_rgb(other / "scene-001.png", picture(7, 29, 34))
    damaged = here / "experiments/damaged"
    shutil.copytree(here / "experiments/tiny_S2", damaged)
    (damaged / "models/net_g_latest.pth").write_bytes(b"no weights")
    call = ["damaged", "tiny_S2", str(other), "nobody", "--data", str(data), *QUICK, "-o", "c"]
    assert main(call) == 1
    found = rows("c")
    assert list(found) == ["tiny_S2", "other"]
    assert found["other"]["images"] == found["tiny_S2"]["images"] == "1"
    assert (found["other"]["failed"], found["other"]["baseline"]) == ("2", "tiny_S2")
    assert float(found["tiny_S2"]["psnr"]) == pytest.approx(
        psnr(here / "results/c_tiny_S2/visualization/own", data, ["scene-000"])[0]
    )
    told = (here / "results/c/compare.md").read_text()
    for words in ("net_g_latest.pth", "nobody", "scene-001", "scene-002", str(other)):
        assert words in told and words in capsys.readouterr().out + told
    shutil.rmtree(damaged)


def test_an_option_file_is_read_as_test_py_reads_it(here, pairs):
    data, names = pairs
    options = test_options(data.parent)
    options["datasets"]["test_1"] |= {
        "mean": [0.4, 0.5, 0.6],
        "dataroot_lq": str(data / "input"),
        "dataroot_gt": str(data / "target"),
    }
    options["val"]["local"] = {"mode": "tile", "size": 32, "overlap": 8}
    assert run_test(parse_options({**options, "name": "own_test"}), ALONE)
    file = write_yaml(data.parent / "model.yml", options)
    bare = write_yaml(data.parent / "bare.yml", {**options, "path": {}})
    call = [str(file), f"w={bare}@tiny_S2", "without=" + str(bare), "--data", str(file)]
    assert main([*call, "--seed", "3", *QUICK, "-o", "c"]) == 1
    assert list(rows("c")) == ["model", "w"]
    for label in ("model", "w"):
        for name in names:
            ours = read_image(f"results/c_{label}/visualization/small/{name}.png")
            theirs = read_image(f"results/own_test/visualization/small/{name}.png")
            assert np.array_equal(ours, theirs)
    assert "path.pretrain_network_g" not in (here / "results/c/compare.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (["tiny_S2", "experiments/tiny_S2"], "^experiments/tiny_S2: .*'tiny_S2'"),
        (["a=tiny_S2", "A=tiny_S2"], "^A=tiny_S2: .*'A'"),
        (["=tiny_S2"], "^'=tiny_S2'"),
        (["tiny_S2", "--baseline", "tiny_S1"], "^--baseline: .*tiny_S2"),
        (["tiny_S2", "--local", "other=tile"], "^--local other=tile: .*'other'"),
        (["tiny_S2", "--local", "tiles"], "^--local tiles: .*tile"),
        (["tiny_S2", "--precision", "fp16"], "^--precision fp16"),
        (["tiny_S2", "--local", "tile", "--size", "20"], "^--size: 20"),
        (["tiny_S2", "--resamples", "0"], "^--resamples 0"),
        (["tiny_S2", "-o", "a/b"], "^-o a/b"),
        (["tiny_S2", "-o", "taken"], "^-o taken: results/taken"),
        (["tiny_S2", "--data", "nowhere"], "^--data: nowhere"),
        (["tiny_S2", "--data", "own/input"], "^--data: own/input has no pairs"),
        (["tiny_S2", "--data", "."], "^--data: . has no pairs"),
        (["tiny_S2", "--data", "unpaired"], "^--data.*scene-001"),
        (["tiny_S2", "--data", "blurry.yml"], "dataroot_gt"),
        (["tiny_S2", "--data", "two.yml"], "^--data: two.yml has a, b; .*--dataset"),
        (["tiny_S2", "--data", "two.yml", "--dataset", "c"], "^--dataset: two.yml has no .*'c'"),
        (["tiny_S1"], "^no model is left .*stage 1"),
        (["nobody"], "^no model is left .*nobody"),
        (["shown"], "^no model is left .*shown/visualization/one"),
        (["low", "high"], "^no image has a score of all of low, high"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_answered_with_their_place(here, pairs, monkeypatch, arguments, place):
    folder = pairs[0].parent
    shutil.copytree(here / "experiments", folder / "experiments")
    monkeypatch.chdir(folder)
    (folder / "results/taken/rows").mkdir(parents=True)
    make_pairs(folder / "unpaired", 2)
    (folder / "unpaired/input/scene-001.png").unlink()
    roots = {"dataroot_lq": str(folder / "own/input")}
    both = {**roots, "dataroot_gt": str(folder / "own/target"), "type": "PairedImageIRDataset"}
    blurry = {"test_1": {**roots, "type": "PairedImageIRDataset"}}
    write_yaml(folder / "blurry.yml", {"datasets": blurry})
    two = {"test_1": {**both, "name": "a"}, "test_2": {**both, "name": "b"}}
    write_yaml(folder / "two.yml", {"datasets": two})
    (folder / "shown/visualization/one").mkdir(parents=True)
    write_rgb(folder / "low/scene-000.png", picture(0, 29, 35))
    write_rgb(folder / "high/scene-001.png", picture(0, 29, 35))
    data = [] if "--data" in arguments else ["--data", "own"]
    with pytest.raises(UserError, match=place):
        main([*QUICK, *arguments, *data])


def test_the_data_set_goes_by_its_folder_or_its_name(pairs, tmp_path):
    data, _ = pairs
    for sides in (("blur", "sharp"), ("lq", "gt")):
        place = tmp_path / sides[0] / "test"
        for old, new in zip(("input", "target"), sides, strict=True):
            shutil.copytree(data / old, place / new)
        found = find_data(str(place))
        assert found.name == sides[0]
        assert found.source["dataroot_lq"] == str(place / sides[0])
    assert find_data(str(data), "GoPro").name == "GoPro"


def test_labels():
    assert parse_models(["bundled", "a=b@best", "x/one.yml@w.pth", "dir/m.safetensors"]) == {
        "bundled": "bundled",
        "a": "b@best",
        "one": "x/one.yml@w.pth",
        "m": "dir/m.safetensors",
    }
    assert list(parse_models(["results/first/visualization/GoPro/"])) == ["first"]
    labels, values = ["a", "b"], ["x", "y"]
    assert by_label(["b=x", "y"], labels, values, "--o") == {"a": "y", "b": "x"}
    assert by_label(["b=x"], labels, values, "--o") == {"b": "x"}


def test_the_ends_of_the_differences():
    values = np.array([0.5, -1.0, 2.0, 0.0])
    assert ends(values, 1) == [2, 1]
    assert ends(values, 2) == [2, 0, 1, 3]
    assert ends(values, 3) == [2, 0, 3, 1]
    assert ends(values, 0) == []
    assert ends(values[:1], 2) == [0]


def test_points_lie_where_their_figures_are():
    x, y = np.array([20.0, 30.0, math.inf]), np.array([30.0, 20.0, 40.0])
    svg = scatter(x, y, names=["<a>", "b", "c"], axes=("x & y", "y"))
    points = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="4"><title>(.*?)</title>', svg)
    # 5 % of the range on either side: 20 is at 1/22 of the axis, 30 at 21/22.
    near, far = SIDE / 22, SIDE * 21 / 22
    expected = [(near, SIDE - far), (far, SIDE - near)]
    assert [(float(u) - LEFT, float(v) - AROUND) for u, v, _ in points] == [
        pytest.approx(point, abs=0.1) for point in expected
    ]
    assert points[0][2] == "&lt;a&gt;: 20, 30"
    assert "x &amp; y" in svg
    assert ticks(19.5, 30.5) == [20.0, 25.0, 30.0]
    assert ticks(-0.011, 0.012) == [-0.01, -0.005, 0.0, 0.005, 0.01]


@pytest.mark.slow("starts a browser")
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
def test_the_page_opens_without_a_network(here, pairs, tmp_path):
    data, _ = pairs
    assert main(["tiny_S2", f"blurry={data / 'input'}", "--data", str(data), "-o", "c"]) == 0
    browser = Browser(tmp_path / "profile")
    try:
        browser.open((here / "results/c/compare.html").as_uri(), 1000, 900)
        assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []
        assert browser.complaints == []
        images = "[...document.images]"
        assert browser.js(f"{images}.length") == 2 * 5
        browser.js(f"Promise.all({images}.map(i => {{ i.loading = 'eager'; return i.decode(); }}))")
        assert browser.js(f"{images}.every(i => i.width % i.naturalWidth === 0)")
        # The style sheet is let in: the points have its colour.
        colour = "getComputedStyle(document.querySelector('circle')).fillOpacity"
        assert browser.js(colour) == "0.65"
        shot = browser.screenshot()
        assert shot.std() > 1
    finally:
        browser.close()
