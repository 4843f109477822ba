"""Curves of trainings from their log files: losses, learning rate and validation."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from hidiff.utils.errors import UserError
from hidiff.utils.files import write_bytes
from hidiff.weights.experiment import Experiment

Curves = dict[str, dict[int, float]]
"""Values by step, by what they are of: 'l_pix', 'learning rate', 'val ValSet, psnr'."""

NUMBER = r"(-?[\d.]+(?:e[-+]?\d+)?)"
_TRAINING = re.compile(rf"step (\d+)/\d+, .*?lr {NUMBER}, (.*?), gradient norm")
_LOSS = re.compile(rf"(l_\w+) {NUMBER}")
_VALIDATION = re.compile(rf"step (\d+): (val.*, \w+) {NUMBER} \(best")


def read_curves(name: str) -> Curves:
    """The figures in an experiment's log files; of a step that was done twice the later ones.

    Raises:
        UserError: there is no such experiment, or its logs have no figures.
    """
    folder = Experiment(name).folder
    files = sorted(folder.glob("train_*.log"))
    if not files:
        raise UserError(f"--curves {name}: {folder} has no log file of a training")
    curves: Curves = {}
    for file in files:
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if found := _TRAINING.search(line):
                step = int(found[1])
                curves.setdefault("learning rate", {})[step] = float(found[2])
                for loss, value in _LOSS.findall(found[3]):
                    curves.setdefault(loss, {})[step] = float(value)
            elif found := _VALIDATION.search(line):
                curves.setdefault(found[2], {})[int(found[1])] = float(found[3])
    if not curves:
        raise UserError(f"--curves {name}: its log has no step yet (see logger.print_freq)")
    return curves


def draw_curves(names: Sequence[str], path: Path) -> None:
    """Draw the curves of some experiments into one picture, an axis for each kind of figure.

    Raises:
        UserError: see `read_curves`; or the picture cannot be written.
    """
    # Imported here: it takes a second, which only this picture is worth.
    from matplotlib.figure import Figure

    curves: Mapping[str, Curves] = {name: read_curves(name) for name in names}
    kinds = list(dict.fromkeys(kind for of_name in curves.values() for kind in of_name))
    figure = Figure(figsize=(8, 2.4 * len(kinds)), dpi=110, layout="constrained")
    for axes, kind in zip(figure.subplots(len(kinds), squeeze=False)[:, 0], kinds, strict=True):
        for name, of_name in curves.items():
            points = sorted(of_name.get(kind, {}).items())
            if points:
                axes.plot(*zip(*points, strict=True), marker="." * (len(points) < 50), label=name)
        axes.set(title=kind, yscale="log" if kind.startswith("l_") else "linear")
        axes.grid(alpha=0.4)
    axes.set_xlabel("step")
    if len(names) > 1:
        figure.axes[0].legend()
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.removeprefix(".") or "png")
    write_bytes(path, content.getvalue())
