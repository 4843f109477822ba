"""What a run can do without: the console, the log file, TensorBoard, pictures of a validation."""

import io
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from small_data import test_options, train_options, write_yaml
from small_training import ALONE

from hidiff import UserError
from hidiff.engine.logger import MetricsWriter, start_logging
from hidiff.engine.trainer import Trainer
from hidiff.evaluation import evaluator
from hidiff.evaluation.record import read_scores
from hidiff.evaluation.test_run import run_test
from hidiff.models import Stage2
from hidiff.options import parse_options
from hidiff.utils.errors import console_failure, keep_console

ROOT = Path(__file__).resolve().parent.parent.parent


@contextmanager
def broken_console():
    """Standard output and error are ASCII pipes that nobody reads any more.

    No fixture, because pytest sets its own streams again when a test begins.
    """
    monkeypatch = pytest.MonkeyPatch()
    opened = []
    for name in ("stdout", "stderr"):
        reader, writer = os.pipe()
        os.close(reader)
        stream = io.TextIOWrapper(io.FileIO(writer, "w"), "ascii", write_through=True)
        opened.append(stream)
        for place in (name, f"__{name}__"):
            monkeypatch.setattr(sys, place, stream)
    try:
        keep_console()
        yield
    finally:
        monkeypatch.undo()
        for stream in opened:
            stream.close()


def test_nothing_written_to_a_lost_console_raises():
    with broken_console():
        print("96×96", flush=True)
        print("96×96", file=sys.stderr)
        assert isinstance(console_failure(), BrokenPipeError)


def test_a_console_of_another_encoding_gets_escapes(monkeypatch):
    reader, writer = os.pipe()
    stream = io.TextIOWrapper(io.FileIO(writer, "w"), "ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "__stdout__", stream)
    keep_console()
    print("96×96", flush=True)
    assert os.read(reader, 100) == b"96\\xd796\n"
    monkeypatch.undo()
    os.close(reader)
    stream.close()


def test_a_closed_console_is_none(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    keep_console()
    print("nothing", flush=True)
    sys.stdout.close()


def test_the_log_file_goes_on_without_a_console(tmp_path):
    with broken_console():
        log = start_logging(is_main=True, file=tmp_path / "a.log")
        for number in range(3):
            log.info("line %d: 96×96", number)
    text = (tmp_path / "a.log").read_text(encoding="utf-8")
    assert text.count("96×96") == 3
    assert text.count("WARNING: the console") == 1


def test_the_console_goes_on_without_a_log_file(tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.touch()
    log = start_logging(is_main=True, file=folder / "a.log")
    log.info("one")
    log.info("two")
    printed = capsys.readouterr().out
    assert "one\n" in printed and "two\n" in printed
    assert printed.count("a.log") == 1
    folder.unlink()
    folder.mkdir()
    log.info("three")
    assert "three" in (folder / "a.log").read_text()


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_goes_on_after_a_file_in_its_way(tmp_path, capsys):
    start_logging(is_main=True)
    (tmp_path / "tb_logger").touch()
    writer = MetricsWriter(tmp_path / "tb_logger" / "run")
    for step in (1, 2):
        writer.scalars({"loss": 0.5}, step)
    assert capsys.readouterr().out.count("tb_logger") == 1
    (tmp_path / "tb_logger").unlink()
    writer.scalars({"loss": 0.5}, 3)
    assert scalars(tmp_path / "tb_logger" / "run") == {"loss": [3]}


def test_a_full_disk_leaves_whole_records(tmp_path, capsys):
    start_logging(is_main=True)
    writer = MetricsWriter(tmp_path)
    writer.scalars({"loss": 0.5}, 1)
    size = next(tmp_path.iterdir()).stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
        writer.scalars({"loss": 0.5}, 2)
        writer.scalars({"loss": 0.5}, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    writer.scalars({"loss": 0.5}, 4)
    assert scalars(tmp_path) == {"loss": [1, 4]}
    assert capsys.readouterr().out.count("TensorBoard") == 1


def test_a_training_survives_the_loss_of_all(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tb_logger").touch()
    options = train_options(data, 1)
    options["val"] |= {"save_img": True, "val_freq": 2}
    run = Trainer(parse_options(options), ALONE)
    run.experiment.visualization.rmdir()
    run.experiment.visualization.touch()
    with broken_console():
        run.run()
    assert Path("experiments/tiny_S1/training_states/4.state").exists()
    log = run.log_file.read_text()
    assert "psnr" in log
    assert "training is complete" in log
    for lost in ("TensorBoard", "picture", "console"):
        assert sum("WARNING" in line and lost in line for line in log.splitlines()) == 1


def test_a_test_survives_a_lost_console(trained, data, monkeypatch):
    monkeypatch.chdir(trained[0])
    with broken_console():
        start_logging(is_main=True)
        assert run_test(parse_options({**test_options(data), "name": "lost_console"}), ALONE)
    assert Path("results/lost_console/scores.json").exists()


@pytest.mark.slow("a process that imports PyTorch, as a user's does")
def test_train_py_without_a_console_has_its_own_exit_code(tmp_path):
    """Python's, where the last output cannot be written, would be 120."""
    options = write_yaml(tmp_path / "a.yml", {"96×96": 1})
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "-opt", str(options)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        stdout=writer,
        stderr=writer,
        timeout=120,
    )
    os.close(writer)
    assert result.returncode == 2


def no_memory(*args, **kwargs):
    """As the allocator says it."""
    return torch.empty(1 << 50)


def test_a_training_without_memory_names_its_patches(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Trainer(parse_options(train_options(data, 1)), ALONE)
    clean = run.model.forward

    def forward(lq, gt, **kwargs):
        return no_memory() if run.state.step == 2 else clean(lq, gt, **kwargs)

    run.model.forward = forward
    with pytest.raises(UserError, match=r"phase 2.*step 2.*32².*train\.micro_batch"):
        run.run()
    assert "train.micro_batch" in run.log_file.read_text()


@pytest.mark.parametrize("where", ["read", "restore", "score"])
def test_images_without_memory_leave_the_rest_of_a_test(trained, data, monkeypatch, where):
    monkeypatch.chdir(trained[0])

    class Once:
        """Fails for the first image."""

        def __init__(self, clean):
            self.clean, self.called = clean, False

        def __call__(self, *args, **kwargs):
            if not self.called:
                self.called = True
                no_memory() if where != "score" else bytearray(1 << 60)
            return self.clean(*args, **kwargs)

    if where == "restore":
        clean = Stage2.restore
        fail = Once(clean)
        monkeypatch.setattr(Stage2, "restore", lambda *a, **k: fail(*a, **k))
    else:
        name = {"read": "to_uint8", "score": "build_metrics"}[where]
        clean = getattr(evaluator, name)
        replacement = Once(clean) if where == "read" else lambda s: Once(clean(s))
        monkeypatch.setattr(evaluator, name, replacement)
    options = {**test_options(data), "name": f"memory_{where}"}
    assert not run_test(parse_options(options), ALONE)
    (scores,) = read_scores(Path(f"results/memory_{where}"))
    assert len(scores.scored) == 1
    assert list(scores.failed) == ["scene-000"]
    assert "memory" in scores.failed["scene-000"]
