"""The rows of a test as they come, from which a second call of test.py goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hidiff.data.frame_cache import file_identity
from hidiff.data.paired_dataset import PairedImageIRDataset
from hidiff.errors import UserError
from hidiff.files import write_text
from hidiff.models import DeblurModel
from hidiff.options import Options, flatten
from hidiff.scoring.evaluator import ImageResult
from hidiff.scoring.files import read_json
from hidiff.scoring.versions import library_versions

ROWS = "rows"
"""Folder of the rows in a result folder."""

_RUN = "run.json"

_WITHOUT_INFLUENCE = re.compile(
    r"num_gpu|(dist_params|logger|train|path)\..*|val\.(val_freq|num_workers|use_ema|pbar)"
    r"|datasets\.(train|val).*|datasets\.test[^.]*\.(cache|num_worker_per_gpu)"
)
"""Options that change nothing in the scores; the weights are compared themselves."""


def fingerprint(
    options: Options, model: DeblurModel, *, device: str, seeds: int
) -> dict[str, str | int]:
    """What decides the scores of a test, by name: weights, options, seeds, libraries.

    Args:
        model: with its weights, on the CPU.
        device: kind of the device that restores; each rounds in its own way.
        seeds: how often each image is restored.
    """
    found = {
        path: json.dumps(value, default=str)
        for path, value in flatten(options.sections).items()
        if not _WITHOUT_INFLUENCE.fullmatch(path)
    }
    for name, network in model.networks().items():
        digest = hashlib.sha256()
        for tensor in network.state_dict().values():
            digest.update(tensor.reshape(-1).numpy())
        found[f"the weights of {name}"] = digest.hexdigest()
    versions = {f"version of {name}": version for name, version in library_versions().items()}
    return {**found, **versions, "--seeds": seeds, "device": device}


def can_resume(folder: Path, expected: Mapping[str, Any]) -> bool:
    """Whether a result folder has rows to go on from.

    Args:
        expected: the `fingerprint` of this call.

    Raises:
        UserError: they are of another test; the message names what differs.
    """
    path = folder / ROWS / _RUN
    if not path.is_file():
        return False
    before = read_json(path)
    names = sorted({*before, *expected})
    changed = [name for name in names if before.get(name) != expected.get(name)]
    if changed:
        raise UserError(
            f"--resume: {folder} holds the results of another test, in which another value had "
            f"{', '.join(changed)}; go on as it was started, or without --resume, which moves it "
            "away and starts anew"
        )
    return True


def start(folder: Path, expected: Mapping[str, Any]) -> None:
    """Write down what the rows of a new result folder are of.

    Raises:
        UserError: it cannot be written.
    """
    write_text(folder / ROWS / _RUN, json.dumps(expected, indent=1) + "\n")


def _state_of(files: list[str]) -> list[list[int | None]]:
    """Sizes and times of change: with another image at its place, a row is worth nothing."""
    return [file_identity(file)[1:] for file in files]


class ScoreLog:
    """Appends the rows of one process to `rows/{rank}.jsonl`, one image a line.

    Use `open_log`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("ab")
        # A call that was killed may have left half a line.
        self.file.write(b"\n" if self.file.tell() else b"")

    def add(self, dataset: str, seed: int, files: list[str], result: ImageResult) -> None:
        """Append a row, which then survives whatever happens to this process.

        Raises:
            UserError: it cannot be written.
        """
        row = {"dataset": dataset, "seed": seed, "files": _state_of(files)}
        line = json.dumps({**row, **dataclasses.asdict(result)}) + "\n"
        try:
            self.file.write(line.encode())
            self.file.flush()
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror or error}); it has the scores so "
                "far, and with --resume test.py goes on from them"
            ) from None


@contextmanager
def open_log(folder: Path, rank: int) -> Iterator[ScoreLog]:
    """The log of one process in a result folder.

    Raises:
        UserError: it cannot be opened.
    """
    path = folder / ROWS / f"{rank}.jsonl"
    try:
        log = ScoreLog(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
    try:
        yield log
    finally:
        with suppress(OSError):  # what could not be flushed
            log.file.close()


Key = tuple[str, int, str, str]


def read_rows(folder: Path) -> dict[Key, ImageResult]:
    """The rows without errors of all processes of earlier calls; see `done_before`.

    Lines that were cut off by a kill or a full disk are left out.

    Raises:
        UserError: a file cannot be read.
    """
    rows = {}
    for path in sorted((folder / ROWS).glob("*.jsonl")):
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                key = row.pop("dataset"), row.pop("seed"), row["name"], str(row.pop("files"))
                result = ImageResult(**row)
                if result.error is None:
                    rows[key] = result
    return rows


def done_before(
    rows: Mapping[Key, ImageResult], name: str, seed: int, dataset: PairedImageIRDataset
) -> dict[int, ImageResult]:
    """The results of a data set's images that are as they were, by index.

    Args:
        rows: of `read_rows`.
        name: of the data set.
    """
    done = {}
    for index, pair in enumerate(dataset.pairs):
        row = rows.get((name, seed, pair.name, str(_state_of(dataset.files(index)))))
        if row is not None:
            done[index] = dataclasses.replace(row, index=index)
    return done
