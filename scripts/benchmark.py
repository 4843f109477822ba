"""The same as `hidiff benchmark`."""

from hidiff.cli import run

run("benchmark")
