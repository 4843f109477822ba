"""The same as `hidiff complexity`."""

from hidiff.cli import run

if __name__ == "__main__":
    run("complexity")
