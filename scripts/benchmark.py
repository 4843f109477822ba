"""The same as `hidiff benchmark`."""

from hidiff.cli import run

if __name__ == "__main__":
    run("benchmark")
