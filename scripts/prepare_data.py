"""The same as `hidiff prepare`."""

from hidiff.cli import run

if __name__ == "__main__":
    run("prepare")
