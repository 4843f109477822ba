"""Ablations: the order of the runs, what belongs to one, and two stages over two seeds."""

from pathlib import Path

import pytest
from small_data import make_pairs, test_options, train_options, write_yaml

from hidiff.cli import main
from hidiff.cli.ablation import SWEEP, TABLE_1
from hidiff.options import shipped_options
from hidiff.report.ablation import plan
from hidiff.utils.errors import UserError


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Tiny option files of both stages, the second with a test set."""
    monkeypatch.chdir(tmp_path)
    make_pairs(tmp_path / "train", 2)
    make_pairs(tmp_path / "test", 2)
    found = []
    for stage in (2, 1):
        content = train_options(tmp_path, stage, total_iter=2)
        content["network_g"] |= {"num_blocks": [1, 0, 0, 1], "num_refinement_blocks": 0}
        content["datasets"]["train"] |= {"iters": [1, 1]}
        del content["datasets"]["val"]
        content["val"] = {"val_freq": None, "protocol": "basicsr", "save_img": False}
        if stage == 2:
            content["datasets"]["test_1"] = test_options(tmp_path)["datasets"]["test_1"]
        found.append(write_yaml(tmp_path / f"S{stage}.yml", content))
    return found


def test_stage_1_comes_first_and_each_seed_has_its_own(files):
    runs = plan(files, [0, 1, 0])
    assert [run.options.name for run in runs] == [
        "tiny_S1_seed0", "tiny_S2_seed0", "tiny_S1_seed1", "tiny_S2_seed1",
    ]  # fmt: skip
    assert [run.options.manual_seed for run in runs] == [0, 0, 1, 1]
    assert str(runs[3].options.path.stage1) == "tiny_S1_seed1"
    assert [run.results is None for run in runs] == [True, False, True, False]
    # The batch of an option file is that of one process, however many there are.
    assert all(run.options.for_training()[0].reference_world_size == 1 for run in runs)


def test_overrides_of_networks_count_where_there_are_such(files):
    texts = ["train.total_iter=7", "network_d.block_num=2"]
    (first, second) = plan(files, [0], texts)
    assert second.options.sections["network_d"]["block_num"] == 2
    assert not first.options.sections.get("network_d")
    assert first.options.for_training()[0].total_iter == 7


def test_a_stage_2_without_its_stage_1_is_refused(files):
    with pytest.raises(UserError, match="tiny_S1"):
        plan(files[:1], [0])


def test_two_files_of_one_name_are_refused(files, tmp_path):
    other = tmp_path / "other.yml"
    other.write_text(files[0].read_text())
    with pytest.raises(UserError, match="tiny_S2"):
        plan([*files, other], [0])


def test_the_papers_tables_can_be_planned():
    names = dict.fromkeys((*TABLE_1, *SWEEP))
    runs = plan([shipped_options() / "ablation" / f"{stem}.yml" for stem in names], [0])
    assert len(runs) == len(names)
    steps = {run.options.for_training()[0].total_iter for run in runs}
    assert steps == {100_000}


def test_everything_is_trained_tested_and_reported_once(files, capsys):
    call = ["ablation", *map(str, files), "--seeds", "0", "1", "-o", "table.md"]
    assert main(call) == 0
    table = Path("table.md").read_text()
    assert table.count("\n| tiny_S2") == 1 and "2 trainings" in table
    state = Path("experiments/tiny_S2_seed1/training_states/2.state")
    before = state.stat().st_mtime_ns
    assert main(call) == 0
    assert state.stat().st_mtime_ns == before, "nothing is trained twice"
