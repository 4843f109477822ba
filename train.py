#!/usr/bin/env python
"""Train one stage of HI-Diff: python train.py -opt options/train/GoPro_S1.yml."""

from hidiff.cli import run

if __name__ == "__main__":
    run("train")
