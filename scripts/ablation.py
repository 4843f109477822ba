"""The same as `hidiff ablation`."""

from hidiff.cli import run

if __name__ == "__main__":
    run("ablation")
