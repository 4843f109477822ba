"""hidiff report: the paper's tables with figures of result folders beside them."""

from pathlib import Path

import cv2
import pytest
from small_data import picture, write_rgb

from hidiff.cli import call
from hidiff.cli.report import MARK
from hidiff.data.image import read_image
from hidiff.evaluation.record import ImageScore, Scores, write_scores
from hidiff.metrics import calculate_psnr
from hidiff.metrics.published import BENCHMARKS
from hidiff.report.published_tables import guess_model, parse_result_folder
from hidiff.utils.errors import UserError


def main(arguments):
    return call("report", *map(str, arguments))


def add_scores(
    folder: Path, dataset: str, psnr: float, ssim: float, *, protocol: str | None = None,
    count: int | None = None, failed: int = 0, unaligned: int = 0, **others,
) -> None:  # fmt: skip
    """Scores of a data set, complete unless `count` says otherwise."""
    benchmark = BENCHMARKS.get(dataset)
    count = count or (benchmark.images if benchmark else 3)
    protocol = protocol or benchmark.protocol
    images = [
        ImageScore(name=f"{i:04}", restored={"psnr": psnr, "ssim": ssim}, aligned=i >= unaligned)
        for i in range(count)
    ]
    images += [ImageScore(name=f"bad{i}", error="damaged") for i in range(failed)]
    write_scores(
        folder,
        [
            Scores(
                dataset=dataset,
                protocol=protocol,
                source="pictures",
                images=images,
                target="t",
                **others,
            )
        ],
    )


def add_metrics(folder: Path, **changes) -> None:
    """GoPro as test.py scores it by `val.metrics`, the options of which are in `metrics`."""
    plain = {name: {"type": f"calculate_{name}"} for name in ("psnr", "ssim")}
    settings = {"metrics": changes.pop("metrics", plain)}
    add_scores(folder, "GoPro", 33.0, 0.93, protocol="basicsr", settings=settings, **changes)


def row(report: str, start: str) -> list[str]:
    """The cells of the only table line that starts so."""
    (line,) = [line for line in report.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def report(folder):
    """Run the program and read the report."""

    def run(*results: str, **options: str) -> str:
        extra = [text for name, value in options.items() for text in (f"--{name}", value)]
        assert main(["--results", *results, "--output", "report.md", *extra]) == 0
        return (folder / "report.md").read_text()

    return run


def test_table_2_beside_the_published_figures(folder, report):
    result = folder / "results/test_HI_Diff_GoPro"
    add_scores(result, "GoPro", 33.40, 0.9652)
    add_scores(result, "HIDE", 31.36, 0.9441)
    add_scores(result, "RealBlur_J", 29.15, 0.8912, unaligned=4)
    text = report("results/test_HI_Diff_GoPro")
    table = text.split("## Table 4")[0]
    assert row(table, "method")[1] == "GoPro, PSNR (dB) / SSIM, matlab"
    assert row(table, "method")[3] == "RealBlur-R, PSNR (dB) / SSIM, realblur"
    assert row(table, "Restormer")[1:] == [
        "32.92 / 0.961", "31.22 / 0.942", "36.19 / 0.957", "28.96 / 0.879",
    ]  # fmt: skip
    assert row(table, "SAPHN")[3:] == ["N/A", "N/A"]
    assert row(table, "HI-Diff (ours)")[1:3] == ["33.33 / 0.964", "31.46 / 0.945"]
    assert row(table, "**this project**") == [
        "**this project**, test_HI_Diff_GoPro", "33.40 / 0.965", "31.36 / 0.944", "",
        "29.15 / 0.891 [1]",
    ]  # fmt: skip
    assert row(table, "difference from HI-Diff (ours)")[1:] == [
        "+0.07 / +0.001", "-0.10 / -0.001", "", "+0.00 / +0.001",
    ]  # fmt: skip
    assert "- [1] no alignment was found for 4 of 980 images" in table
    assert "## Table 3" not in text
    assert row(text.split("## Table 4")[1].split("## All")[0], "difference")[3] == "+0.07"


def test_incomplete_counts_and_failures_are_marked(folder, report):
    add_scores(folder / "a_GoPro", "GoPro", 33.0, 0.96, count=1110, failed=1)
    text = report("a_GoPro").split("## Table 4")[0]
    assert row(text, "**this project**")[1] == "33.00 / 0.960 [1] [2]"
    assert "- [1] 1 images have no score\n- [2] 1110 images; the benchmark GoPro has 1111" in text


def test_table_3_takes_each_model_on_its_own_part(folder, report):
    add_scores(folder / "test_HI_Diff_RealBlur_R", "RealBlur_R", 41.11, 0.979)
    add_scores(folder / "test_HI_Diff_RealBlur_R", "RealBlur_J", 20.0, 0.5)
    add_scores(folder / "test_HI_Diff_RealBlur_J", "RealBlur_J", 33.50, 0.940)
    text = report("test_HI_Diff_RealBlur_R", "test_HI_Diff_RealBlur_J")
    table = text.split("## All")[0]
    assert "## Table 2" not in text
    assert row(table, "**this project**, test_HI_Diff_RealBlur_R")[1:] == ["41.11 / 0.979", ""]
    assert row(table, "**this project**, test_HI_Diff_RealBlur_J")[1:] == ["", "33.50 / 0.940"]
    assert "+0.10 / +0.001" in table
    assert "-0.20 / -0.001" in table
    # The score that is in no table is still listed.
    assert "20.0000" in text.split("## All")[1]


def test_table_1_and_hi_diff_2(folder, report):
    add_scores(folder / "ablation_Baseline", "GoPro", 31.90, 0.9530)
    add_scores(folder / "mine", "GoPro", 33.30, 0.963)
    text = report("ablation_Baseline", "mine=HI-Diff-2")
    first = text.split("## Table 1")[1].split("## All")[0]
    assert row(first, "Baseline") == ["Baseline", "19.13", "117.25", "31.96 / 0.9528"]
    assert row(first, "**this project**")[3] == "31.90 / 0.9530"
    assert row(first, "difference from Baseline")[3] == "-0.06 / +0.0002"
    fourth = text.split("## Table 4")[1].split("## Table 1")[0]
    assert row(fourth, "HI-Diff-2 (ours)") == ["HI-Diff-2 (ours)", "23.99", "125.47", "33.28"]
    assert row(fourth, "**this project**, mine")[3] == "33.30"
    assert row(fourth, "difference from HI-Diff-2 (ours)")[3] == "+0.02"


def test_scores_of_test_py_and_their_protocol(folder, report):
    """basicsr's PSNR is matlab's, its SSIM is not; a score by matlab is preferred."""
    add_metrics(folder / "a_GoPro")
    text = report("a_GoPro").split("## Table 4")[0]
    assert row(text, "**this project**")[1] == "33.00 / 0.930 [1]"
    assert row(text, "difference")[1] == "-0.33 / –"
    assert "'basicsr'" in text.split("- [1]")[1]
    add_scores(folder / "a_GoPro", "GoPro", 33.0, 0.962)
    text = report("a_GoPro")
    assert row(text.split("## Table 4")[0], "**this project**")[1] == "33.00 / 0.962"
    listed = [line for line in text.split("## All")[1].splitlines() if line.startswith("| a_GoPro")]
    assert [line.split("|")[3].strip() for line in listed] == ["basicsr", "matlab"]


def test_realblur_without_alignment_is_not_compared(folder, report):
    add_scores(folder / "x_GoPro", "RealBlur_R", 34.0, 0.93, protocol="basicsr")
    text = report("x_GoPro")
    assert row(text, "**this project**")[3] == "34.00 / 0.930 [1]"
    assert row(text, "difference")[3] == "– / –"


def test_upper_bounds_and_other_metrics_of_test_py(folder, report):
    add_metrics(
        folder / "a_GoPro",
        upper_bound=True,
        metrics={
            "psnr": {"type": "calculate_psnr"},
            "ssim": {"type": "calculate_ssim", "test_y_channel": True},
        },
    )
    text = report("a_GoPro").split("## Table 4")[0]
    assert row(text, "**this project**")[1] == "33.00 [1] [2]"
    assert "upper bound" in text.split("- [1]")[1]
    add_metrics(folder / "a_GoPro", metrics={"psnr": {"type": "calculate_psnr", "crop_border": 4}})
    with pytest.raises(UserError, match="none"):
        report("a_GoPro")


def test_folders_that_give_nothing_say_so(folder, report):
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty .*scores\.json"):
        report("empty")
    with pytest.raises(UserError, match="nowhere"):
        report("nowhere")
    add_scores(folder / "mine", "RealBlur_J", 30.0, 0.9)
    with pytest.raises(UserError, match="RealBlur_J"):
        report("mine=RealBlur_R")
    with pytest.raises(UserError, match="'GoPro'"):
        report("mine=Gopro")
    assert not (folder / "report.md").exists()


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"kind": "hidiff scores", "sets": [{}]}'])
def test_damaged_scores_are_named(folder, report, text):
    (folder / "a").mkdir()
    (folder / "a/scores.json").write_text(text)
    with pytest.raises(UserError, match=r"a/scores\.json"):
        report("a")


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("test_HI_Diff_GoPro", "GoPro"),
        ("test_HI_Diff_RealBlur_R", "RealBlur_R"),
        ("realblur-j_night", "RealBlur_J"),
        ("test_HI_Diff_2_GoPro", "HI-Diff-2"),
        ("test_HI_Diff_20_GoPro", "GoPro"),
        ("ablation_Single_Guide_S2", "Single-Guide"),
        ("ablation_HI_Diff_S2", "Ablation-HI-Diff"),
        ("quickstart", None),
    ],
)
def test_the_model_is_guessed_from_the_folders_name(name, model):
    assert guess_model(name) == model


def test_a_folder_with_an_equals_sign_in_its_name(folder):
    (folder / "lr=2_GoPro").mkdir()
    assert parse_result_folder("lr=2_GoPro") == (Path("lr=2_GoPro"), "GoPro", False)
    assert parse_result_folder("lr=2_GoPro=Baseline") == (Path("lr=2_GoPro"), "Baseline", False)
    (folder / "mine").mkdir()
    assert parse_result_folder("mine") == (Path("mine"), "GoPro", True)


def test_pictures(folder, report, capsys):
    result = folder / "test_HI_Diff_GoPro"
    add_scores(result, "GoPro", 30.0, 0.9, count=2)
    add_scores(result, "HIDE", 30.0, 0.9, count=2)
    for index in range(2):
        sharp = picture(index, 400, 700)
        write_rgb(folder / f"data/target/{index}.png", sharp)
        write_rgb(folder / f"data/input/{index}.png", cv2.blur(sharp, (9, 9)))
        write_rgb(result / f"visualization/GoPro/{index}.png", cv2.blur(sharp, (3, 3)))
    text = report("test_HI_Diff_GoPro", data="GoPro=data")
    assert "![blurry, restored and sharp photographs](report.png)" in text
    output = capsys.readouterr().out
    assert "no pictures of HIDE" in output
    assert "--data HIDE=DIR" in output
    one = read_image("report.png")
    assert 3 * 640 < one.shape[1] < 3 * 660
    assert 360 + 3 * 120 < one.shape[0] < 360 + 3 * 120 + 50
    # The three columns show the sharp photograph with falling blur.
    columns = [one[30:380, start : start + 630] for start in (0, 646, 1292)]
    blurry, restored = (calculate_psnr(image.copy(), columns[2].copy()) for image in columns[:2])
    assert restored > blurry + 3 > 13
    report("test_HI_Diff_GoPro", data="GoPro=data", pictures="2")
    assert read_image("report.png").shape[0] > 1.9 * one.shape[0]


def test_data_sets_that_are_not_in_the_paper(folder, report, capsys):
    add_scores(folder / "mine", "photographs", 30.0, 0.9, protocol="basicsr")
    write_rgb(folder / "data/input/a.png", picture(1, 40, 70))
    write_rgb(folder / "data/target/a.png", picture(2, 40, 70))
    write_rgb(folder / "mine/visualization/photographs/a.png", picture(3, 40, 70))
    text = report("mine")
    assert "## Table" not in text
    own = text.split("## All")[0]
    assert row(own, "mine")[1:6] == ["photographs", "basicsr", "–", "pictures", "3"]
    assert "--data photographs=DIR" in capsys.readouterr().out
    assert "(report.png)" in report("mine", data="photographs=data")
    assert read_image("report.png").shape[1] > 3 * 70
    add_scores(folder / "mine", "GoPro", 33.0, 0.96)
    text = report("mine")
    assert row(text.split("## Table 4")[0], "**this project**")[1] == "33.00 / 0.960"
    assert text.split("## All")[0].count("| photographs |") == 1


def test_no_pictures_is_no_mistake(folder, report, capsys):
    add_scores(folder / "a_GoPro", "GoPro", 33.0, 0.96)
    text = report("a_GoPro", pictures="0")
    assert "## Pictures" not in text
    assert not (folder / "report.png").exists()
    assert "no pictures" not in capsys.readouterr().out


def test_only_an_earlier_report_is_replaced(folder, report):
    add_scores(folder / "a_GoPro", "GoPro", 33.0, 0.96)
    (folder / "report.png").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"report.png"):
        report("a_GoPro")
    (folder / "report.png").unlink()
    (folder / "report.md").write_text("my notes")
    with pytest.raises(UserError, match="report.md"):
        report("a_GoPro")
    assert (folder / "report.md").read_text() == "my notes"
    (folder / "report.md").unlink()
    first = report("a_GoPro")
    assert first.startswith(MARK)
    assert report("a_GoPro") == first
    with pytest.raises(UserError, match=".md"):
        main(["--results", "a_GoPro", "--output", "report.txt"])


def test_a_page_of_all_photographs(folder, report, capsys):
    """Those of the folders that the test run read, with the scores beside them."""
    result = folder / "mine"
    for index in range(2):
        sharp = picture(index, 40, 70)
        write_rgb(folder / f"blurred/{index}.png", cv2.blur(sharp, (9, 9)))
        write_rgb(folder / f"true/{index}.png", sharp)
        write_rgb(result / f"visualization/photographs/{index}.png", sharp[: 40 - index])
    images = [
        ImageScore(name=str(index), restored={"psnr": 31.254, "ssim": 0.9}, blurry={"psnr": 20.0})
        for index in range(2)
    ]
    scores = Scores(
        dataset="photographs",
        protocol="basicsr",
        source="test",
        images=images,
        target="true",
        input="blurred",
        local="none",
    )
    write_scores(result, [scores])
    with pytest.raises(UserError, match="--page"):
        main(["--results", "mine", "--output", "report.md", "--embed"])
    main(["--results", "mine", "--output", "report.md", "--page"])
    assert "(report.html)" in (folder / "report.md").read_text()
    page = (folder / "report.html").read_text()
    assert 'data-before="blurred/0.png"' in page
    assert 'data-after="mine/visualization/photographs/0.png"' in page
    assert 'data-sharp="true/0.png"' in page
    assert "<b>PSNR</b> 20.00 → 31.25 dB" in page
    assert "<b>SSIM</b> 0.9000" in page
    assert "<h1>mine photographs, protocol basicsr, local none</h1>" in page
    assert "1 is not on the page: " in capsys.readouterr().out
    main(["--results", "mine", "--output", "report.md", "--page", "--embed"])
    assert 'data-after="data:image/png;base64,' in (folder / "report.html").read_text()
    (folder / "report.html").write_text("my notes")
    with pytest.raises(UserError, match=r"report\.html"):
        main(["--results", "mine", "--output", "report.md", "--page"])
    assert (folder / "report.html").read_text() == "my notes"
