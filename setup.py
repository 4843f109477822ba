"""Puts the option files into the wheel; all else stands in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

folders = sorted({path.parent for path in Path("options").rglob("*.yml")})
shipped = {".".join(["hidiff.option_files", *folder.parts[1:]]): str(folder) for folder in folders}

setup(packages=[*find_packages(include=["hidiff*"]), *shipped], package_dir=shipped)
