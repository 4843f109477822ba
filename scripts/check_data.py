"""The same as `hidiff check`."""

from hidiff.cli import run

run("check")
