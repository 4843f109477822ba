"""The same as `hidiff prepare lmdb`."""

from hidiff.cli import run

run("prepare", "lmdb")
