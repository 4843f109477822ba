"""The same as `hidiff score`."""

from hidiff.cli import run

run("score")
