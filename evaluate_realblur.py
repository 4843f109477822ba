#!/usr/bin/env python
"""Score restored RealBlur images: evaluate_realblur.py --dataset RealBlur_J --dir results/NAME."""

from hidiff.cli import run

if __name__ == "__main__":
    run("score")
