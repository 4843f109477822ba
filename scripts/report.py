"""The same as `hidiff report`."""

from hidiff.cli import run

run("report")
