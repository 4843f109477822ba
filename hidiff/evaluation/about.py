"""What scores say about the model that restored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hidiff.evaluation.record import ScoredModel, training_recipe
from hidiff.models import DeblurModel
from hidiff.weights.model_file import is_model_file, read_model_file


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
