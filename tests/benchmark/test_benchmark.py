"""The benchmark's arithmetic, and its command with tiny networks."""

import json
import time
import weakref
from pathlib import Path

import pytest
import torch
from small_data import test_options, train_options, write_yaml

from hidiff.benchmark import roofline
from hidiff.benchmark.roofline import Machine, restoring, training_step
from hidiff.benchmark.timing import alternate, bytes_for_backward
from hidiff.cli import main
from hidiff.options import load_options, parse_options
from hidiff.report.macs import model_complexity

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


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run `hidiff benchmark` in `tmp_path`; its exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(roofline, "copy_rate", lambda *_: 1e10)
    monkeypatch.setattr(roofline, "matmul_rate", lambda *_: 1e11)

    def run(*arguments):
        try:
            code = main(["benchmark", *arguments])
        except SystemExit as end:
            code = end.code
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def options(tmp_path):
    """A training's option file with two phases and hardly any network."""
    content = train_options(tmp_path, 2)
    content["network_g"] |= {"num_blocks": [1, 0, 0, 1], "num_refinement_blocks": 0}
    return str(write_yaml(tmp_path / "a.yml", content))


def test_restoring_is_measured_for_each_set_of_options(run, options):
    sets = ["val.precision=fp32,val.strip_rows=16", "val.precision=bf16"]
    code, out, err = run(
        "restore", "-opt", options, "--size", "24", "30", "--repeats", "2", "--reference", "--json",
        "--set", sets[0], "--set", sets[1],
    )  # fmt: skip
    assert code == 0, err
    ((case, variants),) = json.loads(out)["cases"].items()
    assert case == "24×30"
    assert list(variants) == ["reference", *sets]
    for measured in variants.values():
        assert measured["timing"]["median"] > 0 and measured["roofline"] > 0


def test_training_steps_are_measured_for_each_phase(run, options):
    sets = ["train.precision=fp32", *(
        f"train.activation_checkpointing=[{levels}]" for levels in ("1", "1, 2, 3, 4")
    )]  # fmt: skip
    named = [word for text in sets for word in ("--set", text)]
    code, out, err = run(
        "train-step", "-opt", options, "--repeats", "1", "--reference", "--json", *named
    )
    assert code == 0, err
    cases = json.loads(out)["cases"]
    assert list(cases) == ["phase 1, 2×16²", "phase 2, 1×32²"]
    for variants in cases.values():
        assert list(variants) == ["reference", *sets]
        kept = [measured["kept_bytes"] for measured in variants.values()]
        assert kept == sorted(kept, reverse=True) and len(set(kept)) == 4


def test_the_table_says_how_much_faster_a_variant_is(run, options):
    code, out, err = run("restore", "-opt", options, "--size", "16", "16", "--repeats", "1")
    assert code == 0, err
    header, _, row = [line for line in out.splitlines() if line.startswith("|")]
    cells = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    assert cells["speedup"] == "1.00"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train-step", "--phase", "3"], "--phase 3"),
        (["restore", "--set", "val.precision=fp16"], "precision"),
        (["restore", "--set", "val.fast=true"], "fast"),
        (["restore", "--device", "gpu"], "--device"),
        (["restore", "--size", "4", "4"], "4×4"),
        (["restore", "--size", "0", "8"], "--size"),
        (["restore", "--repeats", "0"], "--repeats"),
    ],
)
def test_mistakes_are_named(run, options, arguments, message):
    command, *rest = arguments
    code, _, err = run(command, "-opt", options, *rest)
    assert code == 2
    assert message in err


def test_an_option_file_for_testing_is_refused_for_training(run, tmp_path):
    file = write_yaml(tmp_path / "test.yml", test_options(tmp_path))
    code, _, err = run("train-step", "-opt", str(file))
    assert code == 2
    assert "train" in err


def test_rooflines_are_those_computed_by_hand(monkeypatch):
    """The released network: 2.0 T multiply-accumulates at 1280×720, 5 ms at 790 TFLOP/s."""
    options = load_options(ROOT / "options/train/GoPro_S2.yml").sections
    work = restoring(options, 720, 1280)
    assert work.macs == pytest.approx(2.0e12, rel=0.001)
    # Blocks × channels × share of the pixels at each level, and int(2.66 · channels) beside it.
    levels = [(3, 48, 1), (3 + 4, 96, 1), (10, 96, 4), (12, 192, 16), (6, 384, 64)]
    pixels = 720 * 1280
    elements = sum(n * (18 * c + 6 * int(2.66 * c)) * pixels // share for n, c, share in levels)
    assert work.elements == elements
    monkeypatch.setattr(roofline, "copy_rate", lambda *_: 4.3e12)
    monkeypatch.setattr(roofline, "matmul_rate", lambda *_: 790e12)
    least = Machine(torch.device("cpu")).seconds(work, "bf16")
    assert least == max(2 * work.macs / 790e12, elements * 2 / 4.3e12)


def test_a_training_step_is_three_forward_passes(tmp_path):
    options = parse_options(train_options(tmp_path, 1)).sections
    one, step = restoring(options, 128, 128), training_step(options, 16, 128)
    assert step.macs == 3 * 16 * one.macs
    assert step.elements == 3 * 16 * one.elements
    # In stage 2 the encoder of stage 1 is frozen and only runs forward.
    le = model_complexity(options, (128, 128)).networks["net_le"]
    options = parse_options(train_options(tmp_path, 2)).sections
    frozen = training_step(options, 1, 128).macs - 3 * restoring(options, 128, 128).macs
    assert frozen == le.macs > 0


def test_a_stage_that_trains_no_transformer_has_no_such_roofline():
    options = load_options(ROOT / "options/ablation/Split_Training_S2.yml").sections
    assert training_step(options, 1, 128) is None


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
