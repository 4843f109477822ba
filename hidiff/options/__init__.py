"""Option files and what is in them."""

from hidiff.options.parsing import flatten, load_datasets, load_options, parse_options
from hidiff.options.sections import (
    DatasetOptions,
    DistOptions,
    LocalMode,
    LocalOptions,
    MicroBatch,
    Options,
    Phase,
    Precision,
    Section,
    TrainOptions,
    ValOptions,
)
from hidiff.options.yaml_file import shipped_options

__all__ = [
    "DatasetOptions",
    "DistOptions",
    "LocalMode",
    "LocalOptions",
    "MicroBatch",
    "Options",
    "Phase",
    "Precision",
    "Section",
    "TrainOptions",
    "ValOptions",
    "flatten",
    "load_datasets",
    "load_options",
    "parse_options",
    "shipped_options",
]
