#!/usr/bin/env python
"""Cut GoPro into training patches: the same as `hidiff prepare patches`."""

from hidiff.cli import run

if __name__ == "__main__":
    run("prepare", "patches")
