"""The same as `hidiff score`."""

from hidiff.cli import run

if __name__ == "__main__":
    run("score")
