"""The same as `hidiff prepare lmdb`."""

from hidiff.cli import run

if __name__ == "__main__":
    run("prepare", "lmdb")
