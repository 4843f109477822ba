"""The same as `hidiff check`."""

from hidiff.cli import run

if __name__ == "__main__":
    run("check")
