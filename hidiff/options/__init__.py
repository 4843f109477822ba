"""Option files and what is in them."""

from hidiff.options.datasets import DatasetOptions, Phase
from hidiff.options.fields import Section
from hidiff.options.parsing import (
    compare_options,
    flatten,
    load_datasets,
    load_options,
    parse_options,
    score_options,
)
from hidiff.options.sections import (
    MANUAL_SEED,
    DistOptions,
    LocalMode,
    LocalOptions,
    MicroBatch,
    Options,
    Precision,
    TrainOptions,
    ValOptions,
)
from hidiff.options.yaml_file import shipped_options

__all__ = [
    "MANUAL_SEED",
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
    "compare_options",
    "flatten",
    "load_datasets",
    "load_options",
    "parse_options",
    "score_options",
    "shipped_options",
]
