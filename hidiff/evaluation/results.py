"""The folder of a running test: which test it is of, and a row an image, to go on after a stop.

`run.json` says what decides the scores. `rows/RANK.jsonl` has a line for each image: its score, the
state of the files it was read from, the SHA-256 of its picture, and a checksum of the line. What is
unchanged is not computed again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from hidiff.data.cache import file_identity
from hidiff.evaluation.record import (
    SCORES_FILE,
    ImageScore,
    library_versions,
    read_scores,
)
from hidiff.models import DeblurModel
from hidiff.options import Options, score_options
from hidiff.utils.errors import UserError
from hidiff.utils.files import archive, file_sha256, read_regular_file, write_text
from hidiff.weights.experiment import RESULTS
from hidiff.weights.find import FoundModel
from hidiff.weights.tensors import state_sha256
from hidiff.weights.validations import validation_scores

RUN_FILE, ROWS = "run.json", "rows"
"""Names in a folder of results."""

Key = tuple[str, int | None, str]
"""Data set, seed and name of an image."""

LOG = logging.getLogger("hidiff")


class Row(BaseModel):
    """A line of a file of rows.

    Args:
        dataset: name of the data set.
        files: sizes and times of change of the files that the image was read from; with another
            image in its place a row is worth nothing.
        score: of the image.
        picture: SHA-256 of the restored picture; None where none was written.
        checksum: of all that, see `sealed`.
    """

    dataset: str
    files: list[list[int | None]]
    score: ImageScore
    picture: str | None = None
    checksum: str = ""

    def sealed(self) -> Row:
        """The row with its checksum, by which a changed line is noticed."""
        text = self.model_dump_json(exclude={"checksum"})
        return self.model_copy(update={"checksum": hashlib.sha256(text.encode()).hexdigest()})


def describe_run(
    options: Options, model: DeblurModel, *, device: str, seeds: int
) -> dict[str, str | int]:
    """What decides the scores of a test, by name: weights, options, seeds, libraries.

    Args:
        model: with its weights, on the CPU.
        device: kind of the device that restores; each rounds in its own way.
        seeds: how often each image is restored.
    """
    decisive = score_options(options.sections)
    found = {path: json.dumps(value, default=str) for path, value in decisive.items()}
    for name, network in model.networks().items():
        found[_weights_of(name)] = state_sha256(network.state_dict())
    versions = {f"version of {name}": version for name, version in library_versions().items()}
    return {**found, **versions, "--seeds": seeds, "device": device}


def _weights_of(network: str) -> str:
    return f"the weights of {network}"


def open_results(
    folder: Path, expected: Mapping[str, Any], *, overwrite: bool = False
) -> dict[Key, Row]:
    """Make a folder of results ready.

    Args:
        expected: see `describe_run`.
        overwrite: move the results of another test aside; otherwise they are refused.

    Returns:
        The rows that are there, those of failed images left out.

    Raises:
        UserError: the folder holds the results of another test; the message names what differs.
            Or a file cannot be read or written.
    """
    path = folder / RUN_FILE
    before = _read_run(path) if path.is_file() else {}
    if before == expected:
        return _read_rows(folder)
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            names = sorted({*before, *expected})
            changed = [name for name in names if before.get(name) != expected.get(name)]
            differs = f", in which another value had {', '.join(changed)}" if before else ""
            raise UserError(
                f"{folder} holds other results{differs}; --overwrite moves them aside, and another "
                "name (--force_yml name=NAME) keeps both"
            )
        LOG.info("the results that were there are now in %s", archive(folder))
    write_text(path, json.dumps(expected, indent=1) + "\n")
    return {}


def _read_run(path: Path) -> dict[str, Any]:
    """What a `run.json` says.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    try:
        return dict(json.loads(read_regular_file(path)))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); move its folder away") from None


def _read_rows(folder: Path) -> dict[Key, Row]:
    """The rows of all processes; half and damaged lines are left out."""
    rows = {}
    for path in sorted((folder / ROWS).glob("*.jsonl")):
        for line in read_regular_file(path).splitlines():
            with suppress(ValidationError):
                row = Row.model_validate_json(line)
                if row.score.error is None and row == row.sealed():
                    rows[row.dataset, row.score.seed, row.score.name] = row
    return rows


def add_row(
    folder: Path,
    rank: int,
    dataset: str,
    files: list[str],
    score: ImageScore,
    picture: Path | None,
) -> None:
    """Append the score of an image, which then survives whatever happens to this process.

    Args:
        folder: of the results.
        rank: of this process; each has its own file.
        dataset: name of the data set.
        files: that the image was read from.
        picture: that was written; None where none was.

    Raises:
        UserError: it cannot be written.
    """
    path = folder / ROWS / f"{rank}.jsonl"
    written = picture is not None and picture.is_file()
    row = Row(
        dataset=dataset,
        files=_state_of(files),
        score=score,
        picture=file_sha256(picture) if picture is not None and written else None,
    ).sealed()
    try:
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as file:
            # First the line's end: a call that was killed may have left half a line.
            file.write(b"\n" + row.model_dump_json(exclude_defaults=True).encode())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); it has the scores so far, and "
            "the same call goes on from them"
        ) from None


def is_current(row: Row, files: list[str], picture: Path | None) -> bool:
    """Whether computing an image again would give what is there.

    Args:
        row: of `open_results`.
        files: that the image is read from.
        picture: that is to be there; None where none is.
    """
    if row.files != _state_of(files):
        return False
    return picture is None or (picture.is_file() and file_sha256(picture) == row.picture)


def _state_of(files: list[str]) -> list[list[int | None]]:
    """Sizes and times of change."""
    return [file_identity(file)[1:] for file in files]


def with_scores(model: FoundModel, results: Path = RESULTS) -> FoundModel:
    """The model with the scores of its weights, where it has none yet.

    They are those of its training's validation, and of every test in `results` whose weights are
    the same ones, bit for bit.

    Raises:
        UserError: a file of scores is damaged.
    """
    if model.scores:
        return model
    # What the networks have computed with: a test reads all weights as float32.
    wanted = {
        _weights_of(name): state_sha256(
            {key: value.float() for key, value in network.state_dict().items()}
        )
        for name, network in model.restoring.items()
    }
    scores: list[dict[str, Any]] = []
    if model.folder is not None:
        upper_bound = model.model.restores_from_gt
        scores = validation_scores(model.folder, model.step, upper_bound=upper_bound)
    for path in sorted(results.glob(f"*/{RUN_FILE}")):
        if wanted.items() <= _read_run(path).items() and (path.parent / SCORES_FILE).is_file():
            scores += [data.row() for data in read_scores(path.parent) if data.scored]
    return dataclasses.replace(model, scores=scores)
