"""What test.py does: restore and score the test sets, and write down the scores."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import torch

from hidiff.data import build_dataset
from hidiff.evaluation.evaluator import build_test_scorer, evaluate
from hidiff.evaluation.record import ImageScore, Scores, write_scores
from hidiff.evaluation.rows import ROWS, Resume, add_row, done_before, fingerprint, prepare
from hidiff.evaluation.summary import score_lines
from hidiff.models import DeblurModel, build_model
from hidiff.models.compilation import compile_blocks
from hidiff.models.precision import precision
from hidiff.options import Options
from hidiff.utils.errors import UserError
from hidiff.utils.files import hold, inside
from hidiff.utils.workers import Group
from hidiff.weights.experiment import RESULTS
from hidiff.weights.start import load_pretrained

LOG = logging.getLogger("hidiff")


def run_test(
    options: Options,
    processes: Group,
    *,
    seeds: int = 1,
    resume: Resume = False,
    model: DeblurModel | None = None,
) -> bool:
    """Restore and score every test set of an option file.

    Writes `results/{name}/visualization/{dataset}/{image}.png` and a row in `rows/` as each image
    is done, and `scores.json` and `scores.csv` in the end. Results of an earlier run are set
    aside under another name.

    Args:
        options: the option file.
        processes: those that share the images.
        seeds: how often each image is restored, each time from other noise, to measure how much
            the scores depend on it; the seeds count up from `manual_seed`.
        resume: keep the results of an earlier run of the same test, and go on with the images that
            have no row or no picture there; see `hidiff.evaluation.rows.Resume`.
        model: what the options describe, with its weights, on the CPU; None builds it, and loads
            the weights that the options name.

    Returns:
        Whether every image was restored, and the result was written.

    Raises:
        UserError: anything in the options, the data or the weights that a person must mend.
    """
    folder = RESULTS / options.name
    suffix = f"_{options.val.suffix}" if options.val.suffix else ""
    sections = options.test_sets().values()
    scorers = {section.name: build_test_scorer(options.val, section.name) for section in sections}
    datasets = {section.name: build_dataset(section) for section in sections}
    pictures = {name: folder / "visualization" / name for name in datasets}

    def picture(dataset: str, image: str) -> Path:
        return inside(pictures[dataset], f"{image}{suffix}.png")

    for name, dataset in datasets.items():
        processes.require_same(f"images ({name})", dataset.fingerprint())
        for pair in dataset.pairs:
            picture(name, pair.name)  # refuses a name that leads elsewhere before work starts
    torch.manual_seed(options.manual_seed)
    notices = [*options.notices]
    if model is None:
        model = build_model(options.sections, training=False)
        notices += load_pretrained(model, options, training=False)[0]
    notices += [*model.notices, *hold(folder, processes)]
    rows = {}
    with processes.main_first():
        if processes.is_main:
            expected = fingerprint(options, model, device=processes.device.type, seeds=seeds)
            rows = prepare(folder, expected, resume=resume)
    rows = processes.gather(rows)[0]
    model.to(processes.device).eval()
    model.use_kernels(options.kernels)
    model.strip_rows = options.val.strip_rows
    if options.val.compile:
        compile_blocks(model, "val.compile")
        model.strip_rows = "whole"
    for dataset in datasets.values():
        notices += dataset.notices
    for notice in notices:
        LOG.info(notice)

    def test(name: str, run: int) -> list[ImageScore]:
        seed, dataset = options.manual_seed + run, datasets[name]
        images = ((pair.name, dataset.files(i)) for i, pair in enumerate(dataset.pairs))
        saves = options.val.save_img is not False and run == 0
        done = {
            index: score
            for index, score in done_before(rows, name, seed, images).items()
            if not saves or picture(name, score.name).is_file()
        }
        label = name if seeds == 1 else f"{name}, seed {seed}"
        if done:
            LOG.info("%s: %d of %d images are there already", label, len(done), len(dataset))
        return evaluate(
            model,
            dataset,
            scorers[name][1],
            processes,
            seed=seed,
            label=label,
            val=options.val,
            score_blurry=run == 0,
            picture_path=functools.partial(picture, name) if saves else None,
            on_score=lambda index, score: add_row(
                folder, processes.rank, name, dataset.files(index), score
            ),
            done=processes.gather(done)[0],
        )

    settings = {
        "name": options.name,
        "model_type": options.model_type,
        "metrics": {key: dict(section) for key, section in options.val.metrics.items()},
        "manual_seed": options.manual_seed,
        "precision": options.val.precision,
        "overrides": list(options.overrides),
        "selfensemble_testing": options.val.selfensemble_testing,
    }
    with precision(model, options.val.precision):
        scores = [
            Scores(
                dataset=section.name,
                protocol=scorers[section.name][0],
                source="test",
                seed=options.manual_seed,
                images=[score for run in range(seeds) for score in test(section.name, run)],
                folder=str(pictures[section.name]),
                target=_as_text(section.source.get("dataroot_gt")),
                input=section.source.get("dataroot_lq"),
                local=str(options.val.local),
                upper_bound=model.restores_from_gt,
                settings=settings,
            )
            for section in sections
        ]
    if processes.is_main:
        for line in score_lines(scores):
            LOG.info(line)
        try:
            write_scores(folder, scores)
        except UserError as error:
            LOG.error(
                "%s; nothing is lost: the rows are in %s, and test.py --resume makes of them what "
                "is missing",
                *(error, folder / ROWS),
            )
            return False
        LOG.info("written to %s", folder)
    return not any(data.failed for data in scores)


def _as_text(roots: str | list[str] | None) -> str | None:
    """Where the sharp images are, several folders as one text."""
    return ", ".join(roots) if isinstance(roots, list) else roots
