"""The one table: rows, intervals, published rows, LaTeX, page and curves."""

import math
from pathlib import Path

import numpy as np
import pytest
from small_data import picture, write_rgb

from hidiff.cli import main
from hidiff.evaluation.record import (
    ImageScore,
    ScoredModel,
    Scores,
    write_scores,
)
from hidiff.evaluation.test_run import training_recipe
from hidiff.report.curves import draw_curves, read_curves
from hidiff.report.rows import difference, read_rows
from hidiff.report.table import make_tables
from hidiff.utils.errors import UserError

GOPRO = {"name": "TrainSet", "dataroot_gt": "datasets/GoPro/crop/train/target_crops"}


def write(name, psnr, *, dataset="mine", protocol="basicsr", model=None, **more):
    """A results folder whose images 0, 1, … have these PSNRs, restored from 20 dB."""
    images = [
        ImageScore(
            name=str(n), seed=0, restored={"psnr": v, "ssim": v / 50}, blurry={"psnr": 20.0},
            seconds=0.5,
        )
        for n, v in enumerate(psnr)
    ]  # fmt: skip
    folder = Path("results", name)
    about = ScoredModel(description=name, **model) if model else None
    fields = {"target": "sharp", "local": "none", "images": images, **more}
    scores = Scores(
        dataset=dataset, protocol=protocol, source="test", seed=0, model=about, **fields
    )
    write_scores(folder, [scores])
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def cells(table, model):
    (row,) = [row for row in table.cells if row[0] == model]
    return dict(zip(table.header, row, strict=True))


def test_a_folder_is_a_row_with_its_costs():
    write("A", [30.0, 32.0], model={"parameters": 2_500_000, "trained_on": {"name": "REDS"}})
    (table,) = make_tables(read_rows([Path("results/A")]))
    assert table.title == "mine, protocol basicsr"
    assert cells(table, "blurry input")["PSNR (dB)"] == "20.00"
    found = cells(table, "A")
    assert found["PSNR (dB)"] == "31.00" and found["SSIM"] == "0.6200"
    assert found["trained on"] == "REDS" and found["params (M)"] == "2.50"
    assert found["images"] == "2" and found["s/image"] == "0.5"


def test_trainings_that_differ_in_the_seed_alone_are_one_row():
    for seed, psnr in enumerate((30.0, 31.0, 32.0)):
        write(f"net_seed{seed}", [psnr, psnr], model={"recipe": "one"})
    write("other", [30.0, 30.0], model={"recipe": "two"})
    (table,) = make_tables(read_rows(sorted(Path("results").iterdir())))
    found = cells(table, "net")
    assert found["PSNR (dB)"] == "31.00 ± 1.00"
    assert found["seeds"] == "3 trainings"
    assert cells(table, "other")["PSNR (dB)"] == "30.00"


def test_noises_have_a_spread_of_their_own():
    images = [ImageScore(name="a", seed=s, restored={"psnr": 30.0 + s}) for s in (0, 1)]
    write("A", [], images=images)
    (table,) = make_tables(read_rows([Path("results/A")]))
    assert cells(table, "A")["PSNR (dB)"] == "30.50 ± 0.71"
    assert cells(table, "A")["seeds"] == "2 noises"


def test_a_recipe_is_the_training_without_its_name_seed_and_places():
    sections = {
        "name": "a", "manual_seed": 0, "model_type": "M", "path": {"stage1": "x"}, "val": {},
        "network_g": {"type": "T"}, "train": {"total_iter": 4}, "datasets": {"train": {"n": 1}},
    }  # fmt: skip
    recipe = training_recipe(sections, 4)
    assert training_recipe({**sections, "name": "b", "manual_seed": 1, "path": {}}, 4) == recipe
    assert training_recipe(sections, 3) != recipe
    assert training_recipe({**sections, "network_g": {"type": "U"}}, 4) != recipe
    assert training_recipe({"network_g": {}}, None) is None


def test_differences_are_paired_by_image():
    rng = np.random.default_rng(0)
    base = rng.normal(30, 3, 40)
    better = base + rng.normal(0.2, 0.1, 40)
    ours, theirs = ({str(n): float(v) for n, v in enumerate(x)} for x in (better, base))
    found = difference({**ours, "more": 1.0}, theirs)
    assert found.images == 40
    assert found.mean == pytest.approx((better - base).mean())
    assert found.higher == (better > base).sum()
    # The normal interval of the mean of the differences; that of the two means is 20 times as wide.
    half = 1.96 * (better - base).std(ddof=1) / math.sqrt(40)
    assert found.low == pytest.approx(found.mean - half, abs=0.2 * half)
    assert found.high == pytest.approx(found.mean + half, abs=0.2 * half)
    assert difference(ours, theirs) == difference(ours, theirs), "the draws are fixed"


def test_one_image_and_identical_ones_have_no_interval():
    assert difference({"a": 2.0}, {"a": 1.5}).low is None
    found = difference({"a": math.inf, "b": 2.0}, {"a": math.inf, "b": 1.0})
    assert found.mean == 0.5 and found.low is not None
    assert difference({"a": math.inf, "b": 2.0}, {"a": 1.0, "b": 1.0}).low is None
    assert difference({"a": 1.0}, {"b": 1.0}) is None


def test_the_baseline_stands_in_the_header(capsys):
    write("A", [30.0, 32.0, 31.0])
    write("B", [30.5, 32.4, 31.9])
    assert main(["report", "results/B", "--baseline", "results/A"]) == 0
    out = capsys.readouterr().out
    assert "from A" in out and "+0.600 [" in out and "3 of 3" in out


def test_published_rows_are_those_of_what_the_model_was_trained_on():
    model = {"trained_on": GOPRO}
    write("g", [33.0], dataset="GoPro", protocol="matlab", model=model)
    (table,) = make_tables(read_rows([Path("results/g")]))
    restormer = cells(table, "Restormer, paper's Table 2")
    assert restormer["PSNR (dB)"] == "32.92" and restormer["SSIM"] == "0.961"
    assert restormer["trained on"] == "GoPro" and restormer["params (M)"] == "26.13"
    assert any("1111" in note for note in table.notes), "one image is not the benchmark"
    write("j", [33.0], dataset="RealBlur_J", protocol="realblur", model=model)
    (table,) = make_tables(read_rows([Path("results/j")]))
    assert {row[1] for row in table.cells if "paper" in row[0]} == {"GoPro"}


def test_nothing_is_guessed_from_a_folders_name():
    write("test_HI_Diff_GoPro", [33.0], dataset="RealBlur_J", protocol="realblur")
    (table,) = make_tables(read_rows([Path("results/test_HI_Diff_GoPro")]))
    published = {row[0] for row in table.cells if "paper" in row[0]}
    assert published == {f"HI-Diff (ours), paper's Table {n}" for n in (2, 3)}
    (table,) = make_tables(read_rows([Path("results/test_HI_Diff_GoPro")]), paper=[3])
    assert "33.70" in str(table.cells) and "SRN" in str(table.cells)


def test_protocols_that_cannot_be_compared_have_no_published_rows():
    write("a", [33.0], dataset="RealBlur_J", protocol="basicsr")
    (table,) = make_tables(read_rows([Path("results/a")]))
    assert not any("paper" in row[0] for row in table.cells)
    write("g", [33.0], dataset="GoPro", protocol="basicsr")
    (table,) = make_tables(read_rows([Path("results/g")]))
    published = cells(table, "HI-Diff (ours), paper's Table 2")
    assert published["PSNR (dB)"] == "33.33" and published["SSIM"] == ""


def test_any_metric_has_a_column_also_without_sharp_images():
    images = [ImageScore(name="a", restored={"niqe": 3.25, "my_own": 1.0})]
    write("A", [], images=images, protocol="custom", target=None)
    (table,) = make_tables(read_rows([Path("results/A")]))
    found = cells(table, "A")
    assert found["NIQE"] == "3.2500" and found["my_own"] == "1.0000"


def test_latex_escapes_names_and_keeps_the_numbers(capsys):
    for seed in (0, 1):
        write(f"my_net_seed{seed}", [30.0 + seed], model={"recipe": "one"})
    folders = [str(folder) for folder in Path("results").iterdir()]
    assert main(["report", *folders, "--latex", "-o", "table.tex"]) == 0
    text = Path("table.tex").read_text()
    assert r"my\_net &" in text and r"30.50 $\pm$ 0.71" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1


def test_an_earlier_report_is_replaced_and_nothing_else(capsys):
    write("A", [30.0])
    for _ in range(2):
        assert main(["report", "results/A", "-o", "report.md"]) == 0
    assert "| A |" in Path("report.md").read_text()
    Path("notes.md").write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        main(["report", "results/A", "-o", "notes.md"])
    assert Path("notes.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "folders"),
        (["results/none"], "none"),
        (["results/A", "--embed"], "--page"),
        (["--curves", "none"], "none"),
        (["results/A", "--curves", "none"], "--curves"),
    ],
)
def test_mistakes_are_named(capsys, arguments, message):
    write("A", [30.0])
    with pytest.raises(SystemExit, match="2"):
        main(["report", *arguments])
    assert message in capsys.readouterr().err


def test_folders_without_a_score_are_refused():
    write("A", [], images=[ImageScore(name="a", error="damaged")])
    with pytest.raises(UserError, match="A"):
        read_rows([Path("results/A")])


def test_the_page_shows_folders_beside_each_other(capsys):
    for place in ("input", "sharp", "results/A/visualization/mine", "results/B/visualization/mine"):
        write_rgb(Path(place, "0.png"), picture(len(place), 16, 24))
    for name in ("A", "B"):
        write(name, [30.0], input="input", target="sharp")
    folders = ["results/A", "results/B"]
    assert main(["report", *folders, "--baseline", "results/A", "--page", "page.html"]) == 0
    page = Path("page.html").read_text()
    assert "A: 0" in page and "B: 0" in page and "20.00 → 30.00 dB" in page
    # B's pictures lie over those of the baseline.
    b = page[page.index("data-before", page.index("A: 0")) :]
    assert "results/A" in b.split(">")[0] and "results/B" in b.split(">")[0]


LOG = """\
2026-12-01 01:49:34,352 INFO: step 50/400, phase 1, lr 4.0000e-04, l_pix 0.017953, l_pix_diff \
0.089405, gradient norm 2.297, 2.26 steps/s, 4 h left
2026-12-01 01:49:35,352 INFO: step 100/400, phase 1, lr 3.0000e-04, l_pix 0.016, l_pix_diff 0.08, \
gradient norm 2.297, 2.26 steps/s
2026-12-01 01:49:36,352 INFO: step 100: val ValSet, psnr 28.5000 (best 28.5000 at step 100)
2026-12-01 01:49:37,352 INFO: step 100: saved weights and training state
"""


def test_curves_are_read_from_the_logs():
    folder = Path("experiments/mine")
    folder.mkdir(parents=True)
    (folder / "train_mine_1.log").write_text(LOG)
    # Resumed after step 50: what was done twice counts as the last time.
    (folder / "train_mine_2.log").write_text(LOG.splitlines()[1].replace("0.016", "0.015"))
    curves = read_curves("mine")
    assert curves["l_pix"] == {50: 0.017953, 100: 0.015}
    assert curves["l_pix_diff"] == {50: 0.089405, 100: 0.08}
    assert curves["learning rate"] == {50: 4e-4, 100: 3e-4}
    assert curves["val ValSet, psnr"] == {100: 28.5}
    draw_curves(["mine"], Path("curves.png"))
    assert Path("curves.png").read_bytes().startswith(b"\x89PNG")
