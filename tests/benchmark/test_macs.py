"""Parameters and multiply-accumulates against the paper's figures, and against counting by hand."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from hidiff import UserError
from hidiff.archs.baselines import MIMOUNetPlus
from hidiff.archs.transformer import HIM
from hidiff.benchmark.macs import count_macs, count_operations, model_complexity
from hidiff.cli import main
from hidiff.metrics.published import HI_DIFF, TABLE_4
from hidiff.options import load_options
from hidiff.report import complexity

ROOT = Path(__file__).resolve().parent.parent.parent
RESTORMER = {"model_type": "Restormer", "network_g": {"type": "Transformer", "guidance": "none"}}


def sections(file):
    return load_options(ROOT / "options" / file).sections


@pytest.fixture(autouse=True, scope="module")
def count_once():
    """The paper's tables and the tests of single figures count the same large networks."""
    counted, count = {}, model_complexity

    def once(options, size=(3, 256, 256)):
        networks = {k: v for k, v in options.items() if k.startswith(("network_", "diffusion"))}
        if "network_le_dm" in networks:
            networks.pop("network_le", None)  # which only trains
        key = json.dumps([options["model_type"], networks, size], sort_keys=True)
        if key not in counted:
            counted[key] = count(options, size)
        return counted[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(complexity, "model_complexity", once)
        patch.setitem(globals(), "model_complexity", once)
        yield


@pytest.mark.parametrize(
    ("options", "parameters", "macs_once", "macs"),
    [
        ("train/GoPro_S2.yml", "28.487", None, "142.62"),
        ("test/GoPro.yml", "28.487", None, "142.62"),
        ("test/RealBlur_R.yml", "24.183", None, None),
        ("ablation/HI_Diff_S2.yml", "23.986", "125.468", "125.49"),
        ("ablation/Split_Training_S2.yml", "23.986", "125.468", "125.49"),
        ("ablation/Baseline.yml", "19.132", "117.245", "117.245"),
        ("ablation/Single_Guide_S2.yml", "21.979", "125.90", None),
        (RESTORMER, "26.127", "154.882", "154.882"),
    ],
    ids=str,
)
def test_published_sizes(options, parameters, macs_once, macs):
    """To the printed precision; the paper counts HI-Diff's denoiser T times, HI-Diff-2's once."""
    counted = model_complexity(sections(options) if isinstance(options, str) else options)
    figures = [(counted.parameters / 1e6, parameters)]
    figures += [(counted.macs_once / 1e9, macs_once), (counted.macs / 1e9, macs)]
    for value, printed in figures:
        if printed is not None:
            assert f"{value:.{len(printed.partition('.')[2])}f}" == printed


def test_the_denoiser_counts_once_and_t_times():
    options = copy.deepcopy(dict(sections("ablation/T_32.yml")))
    counted = model_complexity(options)
    denoiser = counted.networks["net_d"]
    # Two linear layers on 16 tokens: 513 → 256 and 256 → 256.
    assert denoiser.macs == 16 * (513 * 256 + 256 * 256)
    assert denoiser.calls == counted.timesteps == 32
    assert counted.macs - counted.macs_once == 31 * denoiser.macs


def test_stage_one_counts_its_own_encoder():
    counted = model_complexity(sections("ablation/HI_Diff_S1.yml"), (3, 64, 64))
    assert list(counted.networks) == ["net_g", "net_le"]
    assert counted.macs == counted.macs_once


def test_sides_are_padded_as_in_restoring():
    network = RESTORMER["network_g"] | {"num_blocks": [0, 1, 0, 1], "num_refinement_blocks": 0}
    small = RESTORMER | {"network_g": network}
    odd, padded = (model_complexity(small, size) for size in ((3, 57, 100), (3, 64, 104)))
    assert odd == padded
    assert odd.size == (3, 64, 104)


@pytest.mark.parametrize("size", [(1, 64, 64), (3, 0, 64)])
def test_an_impossible_size_is_refused(size):
    with pytest.raises(UserError, match="channels"):
        model_complexity(RESTORMER, size)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_convolution_a_linear_layer_and_attention_counted_by_hand(device):
    with torch.device(device):
        conv = nn.Conv2d(6, 4, kernel_size=3, padding=1, groups=2)
        assert count_macs(conv, torch.zeros(1, 6, 5, 7)) == 5 * 7 * 4 * (6 // 2) * 9
        linear = nn.Linear(10, 3)
        assert count_macs(linear, torch.zeros(2, 4, 10)) == 2 * 4 * 10 * 3
        him = HIM(8, 2, 12)
        pixels, tokens = 3 * 5, 4
        expected = pixels * 8 * 8 * 2 + tokens * 12 * 16 + 2 * pixels * tokens * 8
        assert count_macs(him, torch.zeros(1, 8, 3, 5), torch.zeros(1, tokens, 12)) == expected


@pytest.mark.parametrize(
    ("layer", "shape", "counted"),
    [
        (nn.LayerNorm(7), (2, 6, 5, 7), {"LayerNorm": 5 * 420}),
        (nn.InstanceNorm2d(6, affine=True), (2, 6, 5, 7), {"InstanceNorm": 5 * 420}),
        (nn.AdaptiveAvgPool2d(1), (2, 6, 5, 7), {"pooling": 420}),
        (nn.AdaptiveAvgPool2d(2), (2, 6, 5, 7), {"pooling": 420}),
        (lambda x: x.mean(dim=(2, 3)), (2, 6, 5, 7), {"pooling": 420}),
        (lambda x: x.mean(dim=1), (2, 6, 5, 7), {}),
        (nn.Upsample(scale_factor=2), (2, 6, 5, 7), {"nearest resizing": 4 * 420}),
        (
            nn.Upsample(scale_factor=2, mode="bilinear"),
            (2, 6, 5, 7),
            {"bilinear resizing": 16 * 420},
        ),
        (
            nn.Upsample(scale_factor=0.5, mode="bilinear"),
            (1, 2, 4, 4),
            {"bilinear resizing": 4 * 8},
        ),
    ],
)
def test_what_the_paper_counts_besides_by_hand(layer, shape, counted):
    layer = layer.to("meta") if isinstance(layer, nn.Module) else layer
    assert count_operations(layer, torch.empty(shape, device="meta")) == (0, counted)


def test_what_only_other_outputs_need_is_left_out():
    with torch.device("meta"):
        _, besides = count_operations(MIMOUNetPlus(num_res=0).eval(), torch.empty(1, 3, 64, 64))
    # 3×3 convolutions to RGB, from 128 channels at ¼ and from 64 at ½ of the size.
    assert besides["heads of other outputs"] == -3 * 9 * (128 * 16**2 + 64 * 32**2)


@pytest.fixture(scope="module")
def table(count_once):
    """The records of the paper's rows, by name."""
    return {record["name"]: record for record in complexity.paper_report((3, 256, 256))[1]}


@pytest.mark.parametrize("paper", TABLE_4, ids=lambda row: row.method)
def test_table_4_is_counted_as_printed(table, paper):
    record = table[f"Table 4 {paper.method}"]
    assert f"{record['parameters'] / 1e6:.2f}" == f"{paper.parameters:.2f}"
    assert f"{record['macs_as_the_paper'] / 1e9:.2f}" == f"{paper.macs:.2f}"
    # Where counting alike changes the printed digits, the reason is given.
    alike = f"{record['macs_denoiser_once'] / 1e9:.2f}" == f"{paper.macs:.2f}"
    assert alike or record["difference"] or record["timesteps"] > 1


def test_the_differences_of_table_4_are_those_of_the_specification(table):
    def besides(method):
        counted = table[f"Table 4 {method}"]["networks"]["net_g"]["besides"]
        return {kind: f"{number / 1e9:.3f}" for kind, number in counted.items()}

    assert besides("DMPHN") == besides("Restormer") == {}
    assert besides("MPRNet") == {"pooling": "0.313", "bilinear resizing": "0.294"}
    assert besides("Stripformer") == {"LayerNorm": "0.346"}
    mimo = {"nearest resizing": "0.015", "heads of other outputs": "-0.042"}
    assert besides("MIMO-UNet+") == mimo
    assert "157.6" in table["Table 4 HINet"]["difference"]
    assert f"{table['Table 4 HINet']['macs_as_the_paper'] / 1e9:.3f}" == "67.511"


def test_the_program_prints_tables_and_json(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        main(["complexity", *arguments])
        return capsys.readouterr().out

    file = str(ROOT / "options/ablation/HI_Diff_S2.yml")
    records = json.loads(run("-opt", file, "--size", "3", "64", "64", "--json"))
    assert [record["parameters"] for record in records] == [23985583]
    assert records[0]["networks"]["net_d"]["calls"] == 8
    table = run()
    for row in (
        ("Table 1  Baseline", "19.132", "19.13", "117.245", "117.245", "1", "117.25", "117.25"),
        ("Table 4  MPRNet", "20.127", "20.13", "759.411", "759.411", "1", "760.02", "760.02"),
        (
            *("Table 4  HI-Diff (ours)", "28.487", "28.49"),
            *("142.324", "142.620", "8", "142.62", "142.62"),
        ),
    ):
        line = next(line for line in table.splitlines() if line.startswith(row[0]))
        assert tuple(line[len(row[0]) :].split()) == row[1:]
    # The paper's figures belong to 256×256 pixels, which these are when padded.
    (row,) = [row for row in complexity.PAPER_ROWS if row[:2] == (4, HI_DIFF)]
    monkeypatch.setattr(complexity, "PAPER_ROWS", [row])
    assert "142.62" in run("--size", "3", "250", "256")
    assert "142.62" not in run("--size", "3", "64", "64")
    with pytest.raises(SystemExit, match="2"):
        main(["complexity", "-opt", "none.yml"])
    assert "none.yml" in capsys.readouterr().err
