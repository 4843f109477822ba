"""Where a training keeps what it writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

EXPERIMENTS = Path("experiments")
TENSORBOARD = Path("tb_logger")
RESULTS = Path("results")


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
        """Weights files."""
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
