"""The device of the GPU tests, which are skipped without one.

`HIDIFF_GPU_TESTS=cpu` runs those that need no GPU's own features on the CPU: it tries the tests.
"""

import os

import pytest
import torch

ON_CPU = os.environ.get("HIDIFF_GPU_TESTS") == "cpu"


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.path.parts and not (ON_CPU and "device" in item.fixturenames):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture
def device():
    return torch.device("cpu" if ON_CPU else "cuda")
