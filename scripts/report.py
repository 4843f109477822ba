"""The same as `hidiff report`."""

from hidiff.cli import run

if __name__ == "__main__":
    run("report")
