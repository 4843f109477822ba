"""The same as `hidiff benchmark`."""

from hidiff.cli.arguments import run

run("benchmark")
