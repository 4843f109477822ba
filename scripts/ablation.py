"""The same as `hidiff ablation`."""

from hidiff.cli import run

run("ablation")
