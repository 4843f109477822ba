"""What Windows lacks is not needed: the module fcntl, and some signals."""

import subprocess
import sys

import pytest

PROGRAM = """
import importlib, pkgutil, signal, sys
sys.modules["fcntl"] = None
del signal.SIGUSR1, signal.SIGHUP
import hidiff, filelock
for module in pkgutil.walk_packages(hidiff.__path__, "hidiff."):
    if not module.name.startswith(("hidiff.__main__", "hidiff.kernels.triton")):
        importlib.import_module(module.name)
from hidiff.utils.signals import STOP_SIGNALS, StopRequest
with StopRequest() as stop:
    signal.raise_signal(signal.SIGTERM)
assert stop.received == "SIGTERM", stop.received
assert set(STOP_SIGNALS) == {signal.SIGTERM, signal.SIGINT}
from hidiff.cli import main
main(["score", "--help"])
"""


@pytest.mark.slow("a process that imports everything anew")
def test_every_module_is_imported_and_stops_work(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "--restored" in done.stdout
