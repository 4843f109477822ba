"""The numbers of the paper's tables."""

from hidiff.metrics.published import TABLES, find_row, hi_diff_scores


def test_published_numbers():
    """The targets, and the gains that Section 4 states in words."""
    assert hi_diff_scores("GoPro") == {2: (33.33, 0.964)}
    assert hi_diff_scores("HIDE") == {2: (31.46, 0.945)}
    assert hi_diff_scores("RealBlur_R") == {2: (36.28, 0.958), 3: (41.01, 0.978)}
    assert hi_diff_scores("RealBlur_J") == {2: (29.15, 0.890), 3: (33.70, 0.941)}
    assert hi_diff_scores("photographs") == {}

    def gain(table, over, dataset):
        best, other = (find_row(table, m).scores[dataset].psnr for m in ("HI-Diff (ours)", over))
        return round(best - other, 2)

    assert gain(2, "Stripformer", "GoPro") == 0.25
    assert (gain(2, "Restormer", "GoPro"), gain(2, "Restormer", "HIDE")) == (0.41, 0.24)
    assert gain(2, "Stripformer", "RealBlur_J") == 0.33
    assert (gain(2, "Restormer", "RealBlur_R"), gain(2, "Restormer", "RealBlur_J")) == (0.09, 0.19)
    assert gain(3, "Stripformer", "RealBlur_R") == 1.17
    assert gain(3, "Stripformer", "RealBlur_J") == 1.22
    assert gain(1, "Baseline", "GoPro") == 0.28
    assert gain(1, "Single-Guide", "GoPro") == 0.24
    assert gain(1, "Split-Training", "GoPro") == 1.51
    baseline, full = find_row(1, "Baseline"), find_row(1, "HI-Diff (ours)")
    assert round(full.parameters - baseline.parameters, 2) == 4.86
    assert round(full.macs - baseline.macs, 2) == 8.22
    # Table 4 repeats Table 2's GoPro column.
    for row in TABLES[4]:
        if row.method != "HI-Diff-2 (ours)":
            assert row.scores["GoPro"].psnr == find_row(2, row.method).scores["GoPro"].psnr
    assert [len(TABLES[number]) for number in (1, 2, 3, 4)] == [4, 16, 7, 8]
