"""The check of a GPU, on a CPU: the report, the verdicts, and every item with tiny sizes."""

import dataclasses
import json
import time

import pytest
import small_programs
import torch
from small_data import make_pairs, test_options, train_options, write_yaml

from hidiff import kernels
from hidiff.benchmark import gpu_check, gpu_training, variants
from hidiff.benchmark.gpu_check import ITEMS, GpuCheck, Item
from hidiff.benchmark.gpu_defaults import option_lines
from hidiff.cli import main


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    make_pairs(folder / "train", 3)
    make_pairs(folder / "test", 1)
    return folder


def read(folder):
    return json.loads((folder / "report.json").read_text())


def run(folder, pairs, *arguments):
    """The exit code and the report."""
    with pytest.raises(SystemExit) as end:
        raise SystemExit(
            main(["gpu-check", "--device", "cpu", "--output", str(folder), "--data", str(pairs),
                  *arguments])
        )  # fmt: skip
    return end.value.code, read(folder)


@pytest.fixture
def one_block(pairs, tmp_path, monkeypatch):
    """Networks of one block in place of the quickstart's."""
    files = {}
    options = [train_options(pairs, 1), train_options(pairs, 2), test_options(pairs)]
    for name, content in zip(("stage1", "stage2", "test"), options, strict=True):
        content["network_g"] |= {"num_blocks": [0, 0, 0, 1], "num_refinement_blocks": 0}
        files[name] = str(write_yaml(tmp_path / f"{name}.yml", content))
    tiny = dataclasses.replace(gpu_check.TINY, small=files["stage1"], **files)
    monkeypatch.setattr(gpu_check, "TINY", tiny)


@pytest.mark.slow("trains and restores in every variant, a dozen small trainings among it")
def test_every_item_on_a_cpu(one_block, pairs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_training, "launch", small_programs.run)
    monkeypatch.setattr(variants, "copy_rate", lambda *_: 1e10)
    monkeypatch.setattr(variants, "matmul_rate", lambda *_: 1e11)
    code, report = run(tmp_path / "out", pairs, "--minutes", "60")
    errors = [row["error"] for item in report["items"].values() for row in item["rows"]
              if "error" in row]  # fmt: skip
    assert errors == []
    assert {name: item["verdict"] for name, item in report["items"].items()} == {
        "networks": "passed",
        "kernels": "passed",
        "restoring": "measured",
        "training": "measured",
        "compile": "not run",  # only on GPUs
        "deterministic": "passed",
        "resume": "passed",
        "processes": "passed",
        "curves": "passed",
        "loading": "measured",
    }
    assert code == 0
    rows = {name: item["rows"] for name, item in report["items"].items()}
    cases = {(row["stage"], row["case"], row["variant"]) for row in rows["training"]}
    assert len(cases) == 2 * 3  # stages, variants
    assert {row["against"] for row in rows["networks"]} >= {"float64 on the CPU"}
    assert [row["processes"] for row in rows["processes"]] == [2]
    assert {row["data"] for row in rows["loading"]} > {"synthetic"}
    assert all(0 <= row["waiting"] <= 1 for row in rows["loading"])
    assert {line.split(":")[0] for line in report["options"]} >= {
        "train.precision",
        "val.precision",
    }
    page = (tmp_path / "out/report.md").read_text()
    assert all(item.title in page for item in ITEMS.values())
    assert report["options"][0] in capsys.readouterr().out


def three(monkeypatch, *rows):
    """Items 'a', 'b' … with these functions, in place of the real ones."""
    items = {name: Item(f"Item {name}", 1, work) for name, work in zip("abc", rows, strict=False)}
    monkeypatch.setattr(gpu_check, "ITEMS", items)


def good(setting):
    yield {"value": 1.5, "ok": True}


def broken(setting):
    yield {"value": 1}
    raise RuntimeError("no such unit\nand more")


def endless(setting):
    yield {"value": 1}
    while True:
        time.sleep(0.01)


def check(folder, minutes=1, names=("a", "b")):
    return GpuCheck(torch.device("cpu"), folder, folder, minutes, names)


def verdicts(report):
    return {name: item["verdict"] for name, item in report["items"].items()}


def test_an_item_that_fails_is_told_and_the_others_go_on(monkeypatch, tmp_path):
    three(monkeypatch, broken, good)
    assert check(tmp_path).run() == 1
    report = read(tmp_path)
    assert verdicts(report) == {"a": "error", "b": "passed"}
    assert report["items"]["a"]["error"] == "RuntimeError: no such unit"
    assert report["items"]["a"]["rows"] == [{"value": 1}]
    assert "no such unit" in (tmp_path / "report.md").read_text()


def test_an_item_whose_time_is_up_leaves_what_it_has(monkeypatch, tmp_path):
    three(monkeypatch, endless, good)
    started = time.monotonic()
    assert check(tmp_path, minutes=0.08).run() == 0
    assert time.monotonic() - started < 20
    report = read(tmp_path)
    assert verdicts(report) == {"a": "measured", "b": "passed"}
    assert report["items"]["a"]["cut_off"]
    assert report["items"]["a"]["rows"] == [{"value": 1}]


def test_a_run_that_is_ended_leaves_a_report_of_what_was_done(monkeypatch, tmp_path):
    def ended(setting):
        yield {"value": 7}
        raise KeyboardInterrupt

    three(monkeypatch, good, ended, good)
    with pytest.raises(KeyboardInterrupt):
        check(tmp_path, names=("a", "b", "c")).run()
    report = read(tmp_path)
    assert verdicts(report) == {"a": "passed", "b": "running", "c": "not run"}
    assert report["items"]["b"]["rows"] == [{"value": 7}]
    assert "| Item b | running |" in (tmp_path / "report.md").read_text()


def test_figures_of_items_that_are_not_run_now_are_kept(monkeypatch, tmp_path):
    three(monkeypatch, good, endless)
    check(tmp_path, minutes=0.01).run()
    three(monkeypatch, broken, good)
    assert check(tmp_path, names=("b",)).run() == 0
    report = read(tmp_path)
    assert verdicts(report) == {"a": "passed", "b": "passed"}
    # Those of another machine are not.
    (tmp_path / "report.json").write_text(json.dumps(report | {"machine": {"device": "other"}}))
    check(tmp_path, names=("b",)).run()
    assert verdicts(read(tmp_path)) == {"a": "not run", "b": "passed"}


def test_another_process_goes_on_where_the_gpu_is_lost(monkeypatch, tmp_path):
    three(monkeypatch, broken, good)
    commands = []
    monkeypatch.setattr(GpuCheck, "_device_works", lambda self: False)
    monkeypatch.setattr(gpu_check.subprocess, "call", lambda words: commands.append(words) or 1)
    assert check(tmp_path).run() == 1
    ((*_, option, item),) = commands
    assert (option, item) == ("--items", "b")


@pytest.mark.parametrize("name", ["depthwise_conv3x3", "gated_depthwise_conv3x3"])
def test_a_wrong_kernel_is_a_negative_verdict(pairs, tmp_path, monkeypatch, name):
    right = getattr(kernels, name)
    monkeypatch.setattr(kernels, name, lambda *a, **k: right(*a, **k) * (1 + 1e-3))
    code, report = run(tmp_path, pairs, "--items", "kernels")
    assert code == 1
    assert verdicts(report)["kernels"] == "failed"
    kind = "gated" if name.startswith("gated") else "plain"
    assert all(row["ok"] == (row["kernel"] != kind) for row in report["items"]["kernels"]["rows"])
    assert report["options"][0].startswith("kernels: eager")


def test_an_unknown_item_is_named(pairs, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["gpu-check", "--items", "kernel", "--output", str(tmp_path)])
    assert end.value.code == 2
    assert "--items kernel" in capsys.readouterr().err


def timed(**times):
    """Rows of one case whose variants take these milliseconds."""
    return [
        {"stage": "S", "case": "c", "fits": "2 of 2", "variant": name.replace("_", "+"),
         "time [ms]": time, "speedup": 100 / time}
        for name, time in times.items()
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("times", "wrong", "precision", "kernel_mode"),
    [
        ({"fp32_eager": 80, "tf32": 50, "bf16_eager": 30, "bf16": 25}, (), "bf16", "auto"),
        ({"fp32_eager": 80, "tf32": 50, "bf16_eager": 30, "bf16": 25}, ("bf16",), "tf32", "auto"),
        ({"fp32_eager": 80, "tf32": 78, "bf16_eager": 76, "bf16": 79}, (), "fp32", "eager"),
    ],
)
def test_the_options_are_those_that_the_figures_speak_for(times, wrong, precision, kernel_mode):
    numbers = [{"precision": n, "value": "g", "difference": 0.1, "ok": n not in wrong}
               for n in ("fp32", "tf32", "bf16")]  # fmt: skip
    lines = option_lines({"training": timed(**times), "networks": numbers})
    chosen = {line.partition(":")[0]: line.partition(": ")[2].split(" ")[0] for line in lines}
    assert chosen == {
        "train.precision": precision,
        "kernels": kernel_mode,
        "train.micro_batch": "~",
        "train.activation_checkpointing": "[]",
    }


def test_a_batch_that_does_not_fit_is_cut():
    rows = timed(fp32=50)
    rows[0]["fits"] = "3 of 16"
    assert any(
        line.startswith("train.micro_batch: auto") for line in option_lines({"training": rows})
    )
