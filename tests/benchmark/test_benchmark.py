"""The benchmark's arithmetic, and its program on tiny networks."""

import json
import time
import weakref
from pathlib import Path

import pytest
import torch
from small_data import make_pairs, test_options, train_options, write_yaml

from hidiff.benchmark.macs import model_complexity
from hidiff.benchmark.roofline import restoring, training_step
from hidiff.benchmark.table import write_table
from hidiff.benchmark.timing import Timing, alternate, bytes_for_backward, comparison
from hidiff.cli import main
from hidiff.options import load_options, parse_options
from hidiff.utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent


def test_variants_alternate_and_warm_up_calls_do_not_count():
    calls = []

    def first():
        # The warm-up call is slow, as a first call is.
        time.sleep(0.05 if not calls else 0.002)
        calls.append("first")

    timings = alternate({"first": first, "second": lambda: calls.append("second")}, repeats=3)
    assert calls == ["first", "second"] * 4
    assert 0.002 <= timings["first"].median < 0.05
    assert timings["second"].median < timings["first"].median


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")
def test_the_memory_is_the_peak_of_the_call_alone():
    kept = torch.ones(2**23)  # 32 MiB that were there before

    def work():
        torch.ones(2**24)  # 64 MiB, freed at once
        kept.add_(1)

    peaks = [alternate({"work": work}, repeats=repeats)["work"].peak_bytes for repeats in (1, 2)]
    for peak in peaks:
        assert peak == pytest.approx(2**26, rel=0.2)


def test_the_ratio_is_that_of_the_medians():
    timings = {"plain": Timing(3.0, 2.0, 9.0), "fast": Timing(1.5, 1.0, 8.0)}
    compared = comparison(timings, "plain")
    assert compared["fast"]["speedup"] == 2.0
    assert compared["plain"]["speedup"] == 1.0


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run `hidiff benchmark` in `tmp_path`; its exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            code = main(["benchmark", *arguments])
        except SystemExit as end:
            code = end.code
        return (code, *capsys.readouterr())

    return run


@pytest.mark.parametrize(
    ("arguments", "variants", "cases"),
    [
        (["restore", "--size", "24", "30", "--variants", "fp32", "bf16", "bf16+strips"],
         ["plain+fp32", "fp32", "bf16", "bf16+strips"], ["24×30"]),
        (["restore", "--size", "16", "16", "--alone", "--variants", "fp32+strips", "fp32"],
         ["fp32+strips", "fp32"], ["16×16"]),
        (["train-step", "--variants", "fp32", "fp32+checkpoint1", "fp32+checkpoint1234"],
         ["plain+fp32", "fp32", "fp32+checkpoint1", "fp32+checkpoint1234"],
         ["phase 1, 2×16²", "phase 2, 1×32²"]),
        (["data", "--phase", "2", "--cache", "cache"],
         ["read all", "ours", "ours, cache"], ["phase 2, 1×32²"]),
    ],
    ids=["restore", "alone", "train-step", "data"],
)  # fmt: skip
def test_the_program_compares_variants(run, tmp_path, monkeypatch, arguments, variants, cases):
    if "--alone" not in arguments:  # the machine's speed is measured once
        monkeypatch.setattr("hidiff.benchmark.variants.copy_rate", lambda *_: 1e10)
        monkeypatch.setattr("hidiff.benchmark.variants.matmul_rate", lambda *_: 1e11)
    make_pairs(tmp_path / "train", 3)
    make_pairs(tmp_path / "test", 1)
    content = train_options(tmp_path, 2)
    content["network_g"] |= {"num_blocks": [1, 0, 0, 1], "num_refinement_blocks": 0}
    options = write_yaml(tmp_path / "a.yml", content)
    command, *rest = arguments
    page = tmp_path / "page.md"
    page.write_text("# Speed\n\nMeasured by hand.\n")
    code, out, err = run(command, "-opt", str(options), "--repeats", "2", "--json",
        "--write", str(page), *rest,
    )  # fmt: skip
    assert code == 0, err
    report = json.loads(out)
    assert [case["case"] for case in report["cases"]] == cases
    for case in report["cases"]:
        assert list(case["variants"]) == variants
        plain, *others = case["variants"].values()
        assert plain["speedup"] == 1.0
        for other in others:
            assert other["speedup"] == pytest.approx(plain["median"] / other["median"])
            if command != "data":
                assert other["roofline"]["bound"] > 0
        if command == "train-step":
            kept = [variant["kept_for_backward"] for variant in case["variants"].values()]
            assert kept[3] < kept[2] < kept[1] < kept[0]
    text = page.read_text()
    assert text.startswith("# Speed\n\nMeasured by hand.\n\n<!-- benchmark:")
    assert text.count("\n| ") == len(cases) * len(variants) + 2


def test_evaluation_is_compared_image_by_image(run, tmp_path):
    make_pairs(tmp_path / "test", 3)
    content = test_options(tmp_path)
    content["val"] |= {"num_workers": 2}
    options = write_yaml(tmp_path / "test.yml", content)
    code, out, err = run("evaluate", "-opt", str(options), "--images", "2", "--repeats", "1",
                 "--json")  # fmt: skip
    assert code == 0, err
    (case,) = json.loads(out)["cases"]
    assert case["case"] == "2 images, basicsr"
    for variant in case["variants"].values():
        assert variant["rate"] == f"{2 / variant['median']:.2f} images/s"
    assert not (tmp_path / "results").exists(), "a measurement is no result"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train-step", "--phase", "3"], "--phase 3"),
        (["restore", "--variants", "fp16"], "--variants fp16"),
        (["train-step", "--variants", "fp32+strips"], "--variants"),
        (["restore", "--variants", "fp32+fast"], "--variants fp32+fast"),
        (["restore", "--variants", "fp32+checkpoint5"], "--variants fp32+checkpoint5"),
        (["restore", "--device", "cuda"], "--device cuda"),
        (["restore", "--device", "gpu"], "--device gpu"),
        (["restore", "--size", "4", "4"], "4×4"),
        (["restore", "--size", "0", "8"], "--size"),
        (["restore", "--repeats", "0"], "--repeats 0"),
        (["train-step", "--patch", "20"], "--patch 20"),
        (["evaluate"], "test_1"),
    ],
)
def test_mistakes_are_named(run, tmp_path, arguments, message):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    make_pairs(tmp_path / "train", 1)
    options = write_yaml(tmp_path / "a.yml", train_options(tmp_path, 2))
    command, *rest = arguments
    code, _, err = run(command, "-opt", str(options), *rest)
    assert code == 2
    assert message in err


def test_an_option_file_for_testing_is_refused_for_training(run, tmp_path):
    options = write_yaml(tmp_path / "test.yml", test_options(tmp_path))
    code, _, err = run("train-step", "-opt", str(options))
    assert code == 2
    assert "train" in err


def test_a_table_replaces_its_own_block_only(tmp_path):
    page = tmp_path / "page.md"
    write_table(page, "a", "first\n")
    write_table(page, "b", "other\n")
    before = page.read_text()
    assert before.index("first") < before.index("other")
    write_table(page, "a", r"second \1" + "\n")
    assert page.read_text() == before.replace("first", r"second \1")


def test_a_page_with_half_a_table_is_left_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("text\n<!-- benchmark: a -->\n| my | own |\n")
    with pytest.raises(UserError):
        write_table(page, "a", "table\n")
    assert page.read_text().endswith("| my | own |\n")


def test_rooflines_are_those_computed_by_hand():
    """The released network: 2.0 T multiply-accumulates at 1280×720, 5 ms at 790 TFLOP/s."""
    options = load_options(ROOT / "options/train/GoPro_S2.yml").sections
    work = restoring(options, 720, 1280)
    assert work.macs == pytest.approx(2.0e12, rel=0.001)
    roofline = work.roofline(matmul_rate=790e12, copy_rate=4.3e12, element_bytes=2)
    assert roofline["arithmetic"] == pytest.approx(5.07e-3, rel=0.001)
    # Blocks × channels × share of the pixels at each level, and int(2.66 · channels) beside it.
    levels = [(3, 48, 1), (3 + 4, 96, 1), (10, 96, 4), (12, 192, 16), (6, 384, 64)]
    pixels = 720 * 1280
    elements = sum(n * (18 * c + 6 * int(2.66 * c)) * pixels // share for n, c, share in levels)
    assert work.elements == elements
    assert roofline["traffic"] == elements * 2 / 4.3e12
    assert roofline["bound"] == max(roofline["arithmetic"], roofline["traffic"])


def test_a_training_step_is_three_forward_passes(tmp_path):
    options = parse_options(train_options(tmp_path, 1)).sections
    one, step = restoring(options, 128, 128), training_step(options, 16, 128)
    assert step.macs == 3 * 16 * one.macs
    assert step.elements == 3 * 16 * one.elements
    # In stage 2 the encoder of stage 1 is frozen and only runs forward.
    le = model_complexity(options, (3, 128, 128)).networks["net_le"]
    options = parse_options(train_options(tmp_path, 2)).sections
    frozen = training_step(options, 1, 128).macs - 3 * restoring(options, 128, 128).macs
    assert frozen == le.macs > 0


def test_a_stage_that_trains_no_transformer_has_no_such_roofline():
    options = load_options(ROOT / "options/ablation/Split_Training_S2.yml").sections
    with pytest.raises(UserError, match="network_g"):
        training_step(options, 1, 128)


def test_what_is_kept_for_the_backward_pass_is_counted_once():
    weight = torch.nn.Linear(4, 4, bias=False)
    x = torch.rand(8, 4)

    outputs = []

    def work():
        y = weight(x)  # keeps x
        z = y.sigmoid()  # keeps z
        outputs.append(weakref.ref(z))
        return y * y + z  # keeps y, twice

    assert bytes_for_backward(work, weight) == 3 * 8 * 4 * 4
    assert outputs[0]() is None, "the graph is let go"
