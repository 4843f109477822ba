"""The comparison of two precisions, on a training of a few steps."""

import json

import pytest
from small_data import make_pairs, train_options, write_yaml

from hidiff.errors import UserError
from scripts.compare_precision import main


def test_bf16_differs_a_little_from_fp32_and_the_control_hardly(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_pairs(tmp_path / "train", 3)
    make_pairs(tmp_path / "test", 1)
    options = write_yaml(tmp_path / "S1.yml", train_options(tmp_path, 1))
    main(
        ["-opt", str(options), "--steps", "3", "--output", "out/result.json",
         "--precisions", "fp32", "bf16", "--control"]
    )  # fmt: skip
    report = json.loads((tmp_path / "out/result.json").read_text())
    assert report["steps"] == 3
    (a,), (b,), _ = report["loss_windows"].values()
    (difference,) = report["loss_differences"]["bf16"]
    assert difference == pytest.approx((b - a) / a)
    assert 0 < abs(difference) < 0.01
    assert 0 < abs(report["score_differences"]["bf16"]["ValSet/psnr"]) < 0.5
    assert f"at most {abs(difference):.3%}" in capsys.readouterr().out
    for precision in ("fp32", "bf16"):
        assert (tmp_path / f"experiments/tiny_S1_{precision}/models/net_g_latest.pth").exists()
    assert 0 < abs(report["loss_differences"]["control"][0]) < 1e-4


@pytest.mark.parametrize(
    ("precisions", "place"),
    [
        (("fp32", "fp8"), "train.precision"),
        (("fp32", "bf16"), "experiments/tiny_S1_bf16"),
        (("bf16", "bf16"), "--precisions"),
    ],
)
def test_mistakes_are_named_before_anything_trains(tmp_path, monkeypatch, precisions, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments/tiny_S1_bf16/models").mkdir(parents=True)
    make_pairs(tmp_path / "train", 3)
    make_pairs(tmp_path / "test", 1)
    options = write_yaml(tmp_path / "S1.yml", train_options(tmp_path, 1))
    with pytest.raises(UserError, match=place):
        main(["-opt", str(options), "--steps", "3", "--precisions", *precisions])
    assert not (tmp_path / "experiments/tiny_S1_fp32").exists()
