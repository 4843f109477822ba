"""Where a training keeps what it writes, and downloads lie."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidiff.options import DatasetOptions, Options

EXPERIMENTS = Path("experiments")
TENSORBOARD = Path("tb_logger")
RESULTS = Path("results")

MODEL_SUFFIX = ".safetensors"
"""Ending of model files, see `hidiff.weights.model_file`."""


@dataclass(frozen=True)
class Experiment:
    """The folders of one training: `experiments/{name}` and `tb_logger/{name}`."""

    name: str

    @property
    def folder(self) -> Path:
        """experiments/{name}."""
        return EXPERIMENTS / self.name

    @property
    def models(self) -> Path:
        """Model files, one for each step that was saved."""
        return self.folder / "models"

    @property
    def states(self) -> Path:
        """Training states."""
        return self.folder / "training_states"

    @property
    def visualization(self) -> Path:
        """Pictures of the validation."""
        return self.folder / "visualization"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return TENSORBOARD / self.name

    def model_file(self, step: int) -> Path:
        """The file of the model after a step, whether it is there or not."""
        return self.models / f"{self.name}_{step}{MODEL_SUFFIX}"


def models_by_step(folder: Path) -> dict[int, Path]:
    """The model files `…_STEP.safetensors` in a folder, by step; empty where there is no folder."""
    found = {}
    for path in sorted(folder.glob(f"*{MODEL_SUFFIX}")):
        if not path.name.startswith(".") and (step := re.search(r"_(\d+)$", path.stem)):
            found[int(step[1])] = path
    return found


def training_facts(options: Options) -> dict[str, Any]:
    """What the options of a training say about its images: arguments of `save_model`.

    Returns:
        `patch_size`, the side of the largest training patch in pixels, and `data`, the name and
        the last parts of the folders of what is trained on.
    """
    train, section = options.for_training()
    phases = section.phases(train.total_iter)
    data: dict[str, Any] = {"name": section.name, **_folders(section)}
    if section.mixture:
        data = {
            entry.label.removeprefix("datasets.train."): {
                **_folders(entry),
                "weight": entry.weight,
            }
            for entry in section.mixture
        }
    return {"patch_size": max(phase.patch_size for phase in phases), "data": data}


def _folders(section: DatasetOptions) -> dict[str, str]:
    """The data roots of a section; several of one side as one text."""
    roots = {
        key: value if isinstance(value, list) else [value]
        for key, value in section.source.items()
        if key.startswith("dataroot_") and value is not None
    }
    return {key: ", ".join(map(_last_parts, values)) for key, values in roots.items()}


def _last_parts(root: str) -> str:
    # Folders above are of the machine, and nobody's business.
    return str(Path(*Path(root).parts[-3:])) if Path(root).is_absolute() else str(root)


def user_folder() -> Path:
    """The user's folder of downloads: `HIDIFF_HOME`, else the platform's place for such."""
    if home := os.environ.get("HIDIFF_HOME"):
        return Path(home)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home()), "hidiff")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "hidiff"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "hidiff")


def downloaded_model(name: str) -> Path:
    """The model file of a download, whether it is there or not."""
    return user_folder() / "models" / f"{name}{MODEL_SUFFIX}"


def downloaded_models() -> list[str]:
    """Names of the models that are downloaded, HI-Diff's for GoPro first."""
    names = [path.stem for path in (user_folder() / "models").glob(f"*{MODEL_SUFFIX}")]
    return sorted(names, key=lambda name: (name != "gopro", name))
