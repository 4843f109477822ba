"""Losses. Importing this package registers them in `hidiff.registry.LOSSES`.

A new loss is a class in a file that is imported here.
"""

from hidiff.losses import perceptual, pixel

__all__ = ["perceptual", "pixel"]
