"""What a test does: restore and score the test sets, and write down the scores."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hidiff.data import build_dataset
from hidiff.data.dataset import PairSet
from hidiff.evaluation.about import describe_model
from hidiff.evaluation.evaluator import Scorer, build_test_scorer, evaluate
from hidiff.evaluation.record import ImageScore, Scores, write_scores
from hidiff.evaluation.results import Key, Row, add_row, describe_run, is_current, open_results
from hidiff.evaluation.summary import score_lines
from hidiff.models import DeblurModel, build_model
from hidiff.models.compilation import compile_blocks
from hidiff.options import Options, parse_options
from hidiff.restore.image import DEFAULT_SEED
from hidiff.utils.distributed import Processes
from hidiff.utils.errors import UserError
from hidiff.utils.files import lock_folder, safe_join
from hidiff.weights.experiment import RESULTS
from hidiff.weights.start import load_pretrained

LOG = logging.getLogger("hidiff")


def options_for(
    text: str,
    sections: Mapping[str, Any],
    data: Path,
    *,
    protocol: str | None = None,
    name: str | None = None,
) -> Options:
    """The options that test a model on a folder of pairs, where there is no option file.

    Args:
        text: names the model, see `hidiff.weights.find`.
        sections: of the model: `model_type`, `network_*`, `diffusion_schedule`.
        data: folder of the pairs, see `hidiff.data.pairs.find_pairs`.
        protocol: of the scores; None for the one that fits the data set's name.
        name: of the folder in `results`; None makes one of model and data.

    Raises:
        UserError: an option cannot be.
    """
    place = data.resolve()
    dataset = "_".join(place.parts[-2:]) if place.name in ("test", "val", "valid") else place.name
    made = f"test_{Path(text).stem or 'model'}_{dataset}"
    made = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in made)
    return parse_options(
        {
            **sections,
            "name": name or made,
            "datasets": {
                "test_1": {
                    "name": dataset,
                    "type": "PairedImageIRDataset",
                    "dataroot_lq": str(data),
                    "dataroot_gt": str(data),
                }
            },
            "path": {"weights": text},
            "val": {"protocol": protocol or "benchmark"},
        }
    )


class _TestSet:
    """A data set to test on.

    Args:
        name: of the data set.
        dataset: its images.
        protocol, scorer: see `build_test_scorer`.
        folder: of its restored pictures.
        suffix: of their names.
    """

    def __init__(
        self,
        name: str,
        dataset: PairSet,
        protocol: str,
        scorer: Scorer,
        folder: Path,
        suffix: str,
    ) -> None:
        self.name, self.dataset = name, dataset
        self.protocol, self.scorer = protocol, scorer
        self.folder, self.suffix = folder, suffix
        for pair in dataset.pairs:
            self.picture(pair.name)  # refuses a name that leads elsewhere before work starts

    def picture(self, image: str) -> Path:
        """Where the restored image of a name is written."""
        return safe_join(self.folder, f"{image}{self.suffix}.png")

    def current(self, rows: Mapping[Key, Row], seed: int, *, saved: bool) -> dict[int, ImageScore]:
        """The scores by index that need not be computed again; `saved`: with pictures."""
        found = {}
        for index, pair in enumerate(self.dataset.pairs):
            row = rows.get((self.name, seed, pair.name))
            picture = self.picture(pair.name) if saved else None
            if row is not None and is_current(row, self.dataset.files(index), picture):
                found[index] = row.score
        return found


def run_test(
    options: Options,
    processes: Processes,
    *,
    seeds: int = 1,
    overwrite: bool = False,
) -> bool:
    """Restore and score every test set of an option file.

    Writes `results/{name}/visualization/{dataset}/{image}.png` and a row in `rows/` as each image
    is done, and `scores.json` in the end. What an earlier call of the same test has done and is
    unchanged is not done again; images that failed are tried again.

    Args:
        options: the option file.
        processes: those that share the images.
        seeds: how often each image is restored, each time from other noise, to measure how much
            the scores depend on it; the seeds count up from `DEFAULT_SEED`.
        overwrite: move the results of another test aside; otherwise they are refused.

    Returns:
        Whether every image was restored, and the result was written.

    Raises:
        UserError: anything in the options, the data or the weights that a person must mend.
    """
    folder = RESULTS / options.name
    suffix = f"_{options.val.suffix}" if options.val.suffix else ""
    sets = [
        _TestSet(
            section.name,
            build_dataset(section),
            *build_test_scorer(options.val, section.name),
            folder / "visualization" / section.name,
            suffix,
        )
        for section in options.test_sets().values()
    ]
    for each in sets:
        processes.require_same(f"images ({each.name})", each.dataset.fingerprint())
    notices = [*options.notices]
    model = build_model(options.sections, training=False)
    loaded, origins = load_pretrained(model, options, training=False)
    about = describe_model(options.model_type, model, origins)
    notices += [*loaded, *model.notices, *lock_folder(folder, processes)]
    rows: dict[Key, Row] = {}
    with processes.main_first():
        if processes.is_main:
            expected = describe_run(options, model, device=processes.device.type, seeds=seeds)
            rows = open_results(folder, expected, overwrite=overwrite)
    rows = processes.gather(rows)[0]
    model.to(processes.device).eval()
    model.use_kernels(options.kernels)
    model.strip_rows = options.val.strip_rows
    if options.val.compile:
        compile_blocks(model, "val.compile")
        model.strip_rows = "whole"
    for notice in (*notices, *(notice for each in sets for notice in each.dataset.notices)):
        LOG.info(notice)

    scores = []
    for section, each in zip(options.test_sets().values(), sets, strict=True):
        images: list[ImageScore] = []
        for run in range(seeds):
            images += _test(each, options, model, processes, folder, rows, run)
        roots = [section.source.get(f"dataroot_{side}") for side in ("gt", "lq")]
        target, blurry = (", ".join(r) if isinstance(r, list) else r for r in roots)
        scores.append(
            Scores(
                dataset=each.name,
                protocol=each.protocol,
                source="test",
                seed=DEFAULT_SEED,
                model=about,
                folder=str(each.folder),
                target=target,
                input=blurry,
                local=str(options.val.local),
                upper_bound=model.restores_from_gt,
                settings=_settings(options),
                images=images,
            )
        )
    if processes.is_main:
        for line in score_lines(scores):
            LOG.info(line)
        try:
            write_scores(folder, scores)
        except UserError as error:
            LOG.error(
                "%s; nothing is lost: the same call makes what is missing from the rows in %s",
                *(error, folder),
            )
            return False
        LOG.info("written to %s", folder)
    return not any(data.failed for data in scores)


def _test(
    each: _TestSet,
    options: Options,
    model: DeblurModel,
    processes: Processes,
    folder: Path,
    rows: Mapping[Key, Row],
    run: int,
) -> list[ImageScore]:
    """The scores of a data set with the noise of one seed."""
    seed = DEFAULT_SEED + run
    saves = options.val.save_img is not False and run == 0
    done = each.current(rows, seed, saved=saves)
    label = each.name if run == 0 else f"{each.name}, seed {seed}"
    if done:
        LOG.info("%s: %d of %d images are there already", label, len(done), len(each.dataset))

    def keep(index: int, score: ImageScore) -> None:
        picture = each.picture(score.name) if saves else None
        files = each.dataset.files(index)
        add_row(folder, processes.rank, each.name, files, score, picture)

    return evaluate(
        model,
        each.dataset,
        each.scorer,
        processes,
        label=label,
        seed=seed,
        val=options.val,
        score_blurry=run == 0,
        picture_path=each.picture if saves else None,
        on_score=keep,
        done=processes.gather(done)[0],
    )


def _settings(options: Options) -> dict[str, Any]:
    """What of the options a reader of the scores wants to know."""
    return {
        "name": options.name,
        "model_type": options.model_type,
        "metrics": {key: dict(section) for key, section in options.val.metrics.items()},
        "precision": options.val.precision,
        "overrides": list(options.overrides),
        "selfensemble_testing": options.val.selfensemble_testing,
    }
