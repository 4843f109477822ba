"""The scores of a running test, a line an image, from which a second call of test.py goes on."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from hidiff.data.cache import file_identity
from hidiff.evaluation.record import SCORES_FILE as JSON
from hidiff.evaluation.record import ImageScore, library_versions, read_json, read_scores
from hidiff.models import DeblurModel
from hidiff.options import Options, flatten
from hidiff.utils.errors import UserError
from hidiff.utils.files import set_aside, write_text
from hidiff.weights.experiment import RESULTS
from hidiff.weights.find import FoundModel, validation_scores
from hidiff.weights.tensors import state_sha256

ROWS = "rows"
"""Folder of the rows in a result folder: `run.json`, and a file of rows for each process."""

Key = tuple[str, int | None, str, str]
"""Data set, seed, name of the image, and the state of its files."""

LOG = logging.getLogger("hidiff")

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
        found[f"the weights of {name}"] = state_sha256(network.state_dict())
    versions = {f"version of {name}": version for name, version in library_versions().items()}
    return {**found, **versions, "--seeds": seeds, "device": device}


def with_scores(model: FoundModel, results: Path = RESULTS) -> FoundModel:
    """The model with the scores of its weights, where it has none yet.

    They are those of its training's validation, and of every test in `results` whose weights are
    the same ones, bit for bit.

    Raises:
        UserError: a file of scores is damaged.
    """
    if model.scores:
        return model
    # What the networks have computed with: test.py reads all weights as float32.
    wanted = {
        f"the weights of {name}": state_sha256(
            {key: value.float() for key, value in network.state_dict().items()}
        )
        for name, network in model.restoring.items()
    }
    scores = validation_scores(model)
    for path in sorted(results.glob(f"*/{ROWS}/run.json")):
        folder = path.parent.parent
        if wanted.items() <= read_json(path).items() and (folder / JSON).is_file():
            scores += [data.row() for data in read_scores(folder) if data.scored]
    return dataclasses.replace(model, scores=scores)


Resume = bool | Literal["same"]
"""Whether to go on from the rows that are there; 'same': if they are of the same test."""


def prepare(folder: Path, expected: Mapping[str, Any], *, resume: Resume) -> dict[Key, ImageScore]:
    """Make a result folder ready; an earlier one is set aside where the test does not go on.

    Args:
        expected: the `fingerprint` of this call.
        resume: see `Resume`.

    Returns:
        The rows to go on from, see `done_before`.

    Raises:
        UserError: `resume` is True, and the rows are of another test; the message names what
            differs. Or a file cannot be read or written.
    """
    path = folder / ROWS / "run.json"
    if resume and path.is_file():
        before = read_json(path)
        names = sorted({*before, *expected})
        changed = [name for name in names if before.get(name) != expected.get(name)]
        if not changed:
            return _read_rows(folder)
        if resume != "same":
            raise UserError(
                f"--resume: {folder} holds the results of another test, in which another value had "
                f"{', '.join(changed)}; go on as it was started, or without --resume, which moves "
                "it away and starts anew"
            )
    if folder.exists():
        LOG.info("results of an earlier run were moved to %s", set_aside(folder))
    write_text(path, json.dumps(expected, indent=1) + "\n")
    return {}


def _state_of(files: list[str]) -> list[list[int | None]]:
    """Sizes and times of change: with another image at its place, a row is worth nothing."""
    return [file_identity(file)[1:] for file in files]


def add_row(folder: Path, rank: int, dataset: str, files: list[str], score: ImageScore) -> None:
    """Append the score of an image, which then survives whatever happens to this process.

    Args:
        folder: of the results.
        rank: of this process; each has its own file.
        dataset: name of the data set.
        files: that the image was read from.

    Raises:
        UserError: it cannot be written.
    """
    path = folder / ROWS / f"{rank}.jsonl"
    row = {
        "dataset": dataset,
        "files": _state_of(files),
        **score.model_dump(mode="json", exclude_defaults=True),
    }
    try:
        with path.open("ab") as file:
            # First the line's end: a call that was killed may have left half a line.
            file.write(b"\n" + json.dumps(row).encode())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); it has the scores so far, and "
            "with --resume test.py goes on from them"
        ) from None


def _read_rows(folder: Path) -> dict[Key, ImageScore]:
    """The rows without errors of all processes; lines that a kill has cut off are left out."""
    rows = {}
    for path in sorted((folder / ROWS).glob("*.jsonl")):
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
        for line in lines:
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                row = json.loads(line)
                dataset, files = row.pop("dataset"), row.pop("files")
                score = ImageScore.model_validate(row)
                if score.error is None:
                    rows[dataset, score.seed, score.name, str(files)] = score
    return rows


def done_before(
    rows: Mapping[Key, ImageScore],
    name: str,
    seed: int | None,
    images: Iterable[tuple[str, list[str]]],
) -> dict[int, ImageScore]:
    """The scores of a data set's images that are as they were, by index.

    Args:
        rows: of `prepare`.
        name: of the data set.
        images: the name of each, and the files that it is read from.
    """
    keys = ((name, seed, image, str(_state_of(files))) for image, files in images)
    return {index: rows[key] for index, key in enumerate(keys) if key in rows}
