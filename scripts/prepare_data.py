"""The same as `hidiff prepare`."""

from hidiff.cli import run

run("prepare")
