"""The same as `hidiff complexity`."""

from hidiff.cli import run

run("complexity")
