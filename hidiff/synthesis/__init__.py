"""Blur as cameras make it: functions from sharp pixels to blurry ones, without files or torch."""
