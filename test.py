#!/usr/bin/env python
"""Restore and score test images: python test.py -opt options/test/GoPro.yml."""

from hidiff.cli import run

if __name__ == "__main__":
    run("test")
