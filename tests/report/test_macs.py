"""Parameters and multiply-accumulates against the paper's figures, and against counting by hand."""

import json
from pathlib import Path

import pytest
import torch
from paper_counting import besides, count_as_the_paper
from torch import nn

from hidiff import UserError
from hidiff.archs.baselines import HINet, MIMOUNetPlus
from hidiff.archs.transformer import HIM
from hidiff.cli import main
from hidiff.metrics.published import TABLE_1, TABLE_4, TABLES
from hidiff.models import build_model
from hidiff.options import load_options
from hidiff.report.complexity import PAPER_ROWS, paper_report
from hidiff.report.macs import count_macs, model_complexity

ROOT = Path(__file__).resolve().parent.parent.parent
RESTORMER = {"model_type": "Regression", "network_g": {"type": "Transformer", "guidance": "none"}}
IMAGE = (1, 3, 256, 256)


def sections(file):
    return load_options(ROOT / "options" / file).sections


@pytest.fixture(scope="module")
def records():
    """The records of the paper's rows, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        rows = [row for row in PAPER_ROWS if row.method in {k.method for k in TABLES[row.table]}]
        return {record["name"]: record for record in paper_report((256, 256), rows)[1]}


@pytest.mark.parametrize(
    ("table", "row"),
    [(1, row) for row in TABLE_1] + [(4, row) for row in TABLE_4],
    ids=lambda value: getattr(value, "method", str(value)),
)
def test_parameters_are_the_published_ones(records, table, row):
    parameters = records[f"Table {table} {row.method}"]["parameters"]
    assert f"{parameters / 1e6:.2f}" == f"{row.parameters:.2f}"


def test_macs_of_hi_diff_are_the_published_ones(records):
    """The paper counts the denoiser of HI-Diff T times, and that of HI-Diff-2 once."""
    assert f"{records['Table 4 HI-Diff (ours)']['macs'] / 1e9:.2f}" == "142.62"
    assert f"{records['Table 4 HI-Diff-2 (ours)']['macs_denoiser_once'] / 1e9:.2f}" == "125.47"
    for method, printed in (("Baseline", "117.25"), ("Split-Training", "125.47")):
        assert f"{records[f'Table 1 {method}']['macs_denoiser_once'] / 1e9:.2f}" == printed


BESIDES = {
    "DMPHN": {},
    "MIMO-UNet+": {"nearest resizing": "0.015", "heads of other outputs": "-0.042"},
    "MPRNet": {"pooling": "0.313", "bilinear resizing": "0.294"},
    "Restormer": {},
    "Stripformer": {"LayerNorm": "0.346"},
}
"""Billions of operations that explain why Table 4 prints other figures than multiply-accumulates;
the networks of HI-Diff have none, HINet is counted by its first U-shape."""


@pytest.mark.parametrize("method", BESIDES)
def test_macs_of_the_others_are_published_with_what_the_papers_counter_adds(records, method):
    (row,) = [row for row in PAPER_ROWS if row[:2] == (4, method)]
    with torch.device("meta"):
        network = build_model(row.options, training=False).eval().net_g
        arguments = [torch.empty(IMAGE)]
        arguments += [None] if method == "Restormer" else []  # its prior
        found = besides(network, *arguments)
    assert {kind: f"{number / 1e9:.3f}" for kind, number in found.items()} == BESIDES[method]
    total = records[f"Table 4 {method}"]["macs"] + sum(found.values())
    printed = next(known.macs for known in TABLES[4] if known.method == method)
    assert f"{total / 1e9:.2f}" == f"{printed:.2f}"


def test_the_published_macs_of_hinet_are_those_of_its_first_u_shape():
    with torch.device("meta"):
        first = HINet().eval().stage1
        assert f"{count_as_the_paper(first, torch.empty(IMAGE)) / 1e9:.2f}" == "67.51"


def test_the_denoiser_counts_once_and_t_times():
    options = dict(sections("ablation/T_32.yml"))
    counted = model_complexity(options, (64, 64))
    denoiser = counted.networks["net_d"]
    # Two linear layers on 16 tokens: 513 → 256 and 256 → 256.
    assert denoiser.macs == 16 * (513 * 256 + 256 * 256)
    assert denoiser.calls == counted.timesteps == 32
    assert counted.macs - counted.macs_once == 31 * denoiser.macs


def test_stage_one_counts_its_own_encoder():
    counted = model_complexity(sections("ablation/HI_Diff_S1.yml"), (64, 64))
    assert list(counted.networks) == ["net_g", "net_le"]
    assert counted.macs == counted.macs_once


def test_sides_are_padded_as_in_restoring():
    network = RESTORMER["network_g"] | {"num_blocks": [0, 1, 0, 1], "num_refinement_blocks": 0}
    small = RESTORMER | {"network_g": network}
    odd, padded = (model_complexity(small, size) for size in ((57, 100), (64, 104)))
    assert odd == padded
    assert odd.size == (64, 104)


def test_an_impossible_size_is_refused():
    with pytest.raises(UserError, match="0 64"):
        model_complexity(RESTORMER, (0, 64))


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
        (nn.AdaptiveAvgPool2d(2), (2, 6, 5, 7), {"pooling": 420}),
        (lambda x: x.mean(dim=(2, 3)), (2, 6, 5, 7), {"pooling": 420}),
        (lambda x: x.mean(dim=1), (2, 6, 5, 7), {}),
        (nn.Upsample(scale_factor=2), (2, 6, 5, 7), {"nearest resizing": 4 * 420}),
        (nn.Upsample(scale_factor=0.5, mode="bilinear"), (1, 2, 4, 4), {"bilinear resizing": 32}),
    ],
)
def test_what_the_papers_counter_adds_by_hand(layer, shape, counted):
    layer = layer.to("meta") if isinstance(layer, nn.Module) else layer
    assert besides(layer, torch.empty(shape, device="meta")) == counted


def test_what_only_other_outputs_need_is_left_out():
    with torch.device("meta"):
        found = besides(MIMOUNetPlus(num_res=0).eval(), torch.empty(1, 3, 64, 64))
    # 3×3 convolutions to RGB, from 128 channels at ¼ and from 64 at ½ of the size.
    assert found["heads of other outputs"] == -3 * 9 * (128 * 16**2 + 64 * 32**2)


def test_the_program_prints_tables_and_json(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    file = "options/ablation/HI_Diff_S2.yml"
    assert main(["complexity", "-opt", file, "--size", "64", "64", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["parameters"] == 23985583
    assert record["networks"]["net_d"]["calls"] == 8


def test_the_papers_figures_stand_beside_its_own_size_alone():
    (row,) = [row for row in PAPER_ROWS if row[:2] == (4, "DMPHN")]
    # 250×256 is 256×256 when padded.
    assert "195.44" in paper_report((250, 256), [row])[0][-1].split()
    assert "195.44" not in paper_report((64, 64), [row])[0][-1].split()
