"""What a test does: restore and score the test sets, and write down the scores."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidiff.data import build_dataset
from hidiff.data.dataset import PairSet
from hidiff.evaluation.evaluator import PreviewImages, Scorer, build_test_scorer, evaluate
from hidiff.evaluation.folders import restored_folder
from hidiff.evaluation.record import ImageScore, ScoredModel, Scores, write_scores
from hidiff.evaluation.results import Key, Row, add_row, describe_run, is_current, open_results
from hidiff.evaluation.summary import score_lines
from hidiff.models import DeblurModel, build_model
from hidiff.models.compilation import compile_blocks
from hidiff.options import DatasetOptions, Options, ValOptions, parse_options, score_options
from hidiff.restore.image import DEFAULT_SEED
from hidiff.utils.distributed import Processes
from hidiff.utils.files import lock_folder, safe_join
from hidiff.weights.experiment import RESULTS
from hidiff.weights.model_file import is_model_file, read_model_file
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
    test_set = {
        "name": dataset,
        "type": "PairedImageIRDataset",
        "dataroot_lq": str(data),
        "dataroot_gt": str(data),
    }
    return parse_options(
        {
            **sections,
            "name": name or made,
            "datasets": {"test_1": test_set},
            "path": {"weights": text},
            "val": {"protocol": protocol or "benchmark"},
        }
    )


def describe_model(
    model_type: str, model: DeblurModel, origins: Mapping[str, Mapping[str, Any]]
) -> ScoredModel:
    """What is known of a model whose weights an option file names.

    Args:
        model_type: as the option file says.
        model: with all its networks.
        origins: of each network its `file` and that file's `sha256`, see `load_pretrained`.
    """
    networks = model.networks()
    if not model.restores_from_gt:
        networks.pop("net_le", None)
    files = {origin["file"]: origin["sha256"] for origin in origins.values()}
    about = ScoredModel(
        description=f"{model_type} from {', '.join(files)}",
        parameters=sum(p.numel() for net in networks.values() for p in net.parameters()),
    )
    if len(files) == 1:
        ((file, about.sha256),) = files.items()
        if is_model_file(Path(file)):
            known = read_model_file(Path(file)).about
            about.trained_on = known.data
            about.recipe = training_recipe(known.options, known.step)
    return about


def training_recipe(sections: Mapping[str, Any], step: int | None) -> str | None:
    """See `ScoredModel.recipe`.

    Args:
        sections: all sections of the training's option file, as a model file has them.
        step: of the model.

    Returns:
        None where the sections say nothing of a training.
    """
    if not sections.get("train"):
        return None
    networks = {key: value for key, value in sections.items() if key.startswith("network_")}
    others = ("model_type", "diffusion_schedule", "train")
    data = (sections.get("datasets") or {}).get("train")
    deciding = [networks, *(sections.get(key) for key in others), data, step]
    text = json.dumps(deciding, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _TestSet:
    """A data set to test on.

    Args:
        section: of the option file.
        dataset: its images.
        protocol, scorer: see `build_test_scorer`.
        results: folder of the results.
        val: options of the test.
    """

    section: DatasetOptions
    dataset: PairSet
    protocol: str
    scorer: Scorer
    results: Path
    val: ValOptions

    def picture(self, image: str) -> Path:
        """Where the restored image of a name is written.

        Raises:
            UserError: the name leads out of the folder.
        """
        suffix = f"_{self.val.suffix}" if self.val.suffix else ""
        return safe_join(restored_folder(self.results, self.section.name), f"{image}{suffix}.png")

    def done(self, rows: Mapping[Key, Row], seed: int, *, saved: bool) -> dict[int, ImageScore]:
        """The scores by index that need not be computed again; `saved`: with pictures."""
        found = {}
        for index, pair in enumerate(self.dataset.pairs):
            row = rows.get((self.section.name, seed, pair.name))
            picture = self.picture(pair.name) if saved else None
            if row is not None and is_current(row, self.dataset.files(index), picture):
                found[index] = row.score
        return found

    def test(
        self, model: DeblurModel, processes: Processes, rows: Mapping[Key, Row], run: int
    ) -> list[ImageScore]:
        """The scores of all images with the noise of one seed, the first of which saves pictures.

        Raises:
            UserError: a picture or a row cannot be written.
        """
        seed, name = DEFAULT_SEED + run, self.section.name
        saves = self.val.save_img is not False and run == 0
        done = processes.gather(self.done(rows, seed, saved=saves))[0]
        label = name if run == 0 else f"{name}, seed {seed}"
        if done:
            LOG.info("%s: %d of %d images are there already", label, len(done), len(self.dataset))

        def keep(index: int, score: ImageScore, _: PreviewImages) -> None:
            picture = self.picture(score.name) if saves else None
            files = self.dataset.files(index)
            add_row(self.results, processes.rank, name, files, score, picture)

        return evaluate(
            model,
            self.dataset,
            self.scorer,
            processes,
            label=label,
            seed=seed,
            val=self.val,
            score_blurry=run == 0,
            picture_path=self.picture if saves else None,
            on_image=keep,
            done=done,
        )


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
        Whether every image was restored.

    Raises:
        UserError: anything in the options, the data or the weights that a person must mend.
    """
    folder = RESULTS / options.name
    sets = []
    for section in options.test_sets().values():
        scored_by = build_test_scorer(options.val, section.name)
        each = _TestSet(section, build_dataset(section), *scored_by, folder, options.val)
        for pair in each.dataset.pairs:
            each.picture(pair.name)  # refuses a name that leads elsewhere before work starts
        processes.require_same(f"images ({section.name})", each.dataset.fingerprint())
        sets.append(each)
    model = build_model(options.sections, training=False)
    loaded, origins = load_pretrained(model, options, training=False)
    about = describe_model(options.model_type, model, origins)
    notices = [*options.notices, *loaded, *model.notices, *lock_folder(folder, processes)]
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
    for each in sets:
        images = [i for run in range(seeds) for i in each.test(model, processes, rows, run)]
        roots = [each.section.source.get(f"dataroot_{side}") for side in ("gt", "lq")]
        target, blurry = (", ".join(r) if isinstance(r, list) else r for r in roots)
        scores.append(
            Scores(
                dataset=each.section.name,
                protocol=each.protocol,
                source="test",
                seed=DEFAULT_SEED,
                model=about,
                folder=str(restored_folder(folder, each.section.name)),
                target=target,
                input=blurry,
                local=str(options.val.local),
                upper_bound=model.restores_from_gt,
                settings=score_options(options.sections),
                images=images,
            )
        )
    if processes.is_main:
        for line in score_lines(scores):
            LOG.info(line)
        write_scores(folder, scores)
        LOG.info("written to %s", folder)
    return not any(data.failed for data in scores)
