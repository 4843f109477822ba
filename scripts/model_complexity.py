"""The same as `hidiff complexity`."""

from hidiff.cli.arguments import run

run("complexity")
