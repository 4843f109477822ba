"""Programs in processes that need not import PyTorch, which takes seconds each time.

`run` and `start` stand for `subprocess` with `sys.executable`. What they start comes from
multiprocessing's fork server, which has imported PyTorch and hidiff and computed nothing; the
processes that torchrun starts are forked from torchrun.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
# The second and third are imported late by an optimiser and by the trainer.
SERVER.set_forkserver_preload(
    ["torch.distributed.run", "torch._dynamo", "torch.utils.tensorboard"]
    + [f"hidiff.cli.{command}" for command in ("train", "test", "score", "prepare", "check")]
)


def _be(arguments, folder, environment, outputs=()):
    """Be the program `python ARGUMENTS`."""
    multiprocessing.set_start_method(None, force=True)  # its own processes start as anywhere
    for number, output in enumerate(outputs, start=1):
        os.dup2(output.fileno(), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    arguments = [argument for argument in arguments if argument != "-u"]
    if arguments[0] == "-m":
        from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

        SubprocessHandler._popen = lambda handler, command, environment: _Rank(command, environment)
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(arguments[1], {"__name__": "__main__"})
    else:
        sys.argv = list(arguments)
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")


class _Rank:
    """The part of `subprocess.Popen` that torchrun uses."""

    def __init__(self, command, environment):
        fork = multiprocessing.get_context("fork")
        process = fork.Process(target=_be, args=(command[1:], Path.cwd(), environment))
        self.returncode = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.closerange(3, 2**12)  # torchrun's connections, which end when it ends
            os._exit(process._bootstrap())

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout=None):
        deadline = time.monotonic() + (timeout or 1e9)
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("rank", timeout)
            time.sleep(0.01)
        return self.returncode


class Program:
    """`python ARGUMENTS` in a folder; leaving the context ends it if it runs."""

    output = None

    def __init__(self, folder, arguments, environment, outputs):
        arguments = tuple(map(str, arguments))
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
        self._process = SERVER.Process(target=_be, args=(arguments, folder, environment, outputs))
        self._process.start()
        self.pid = self._process.pid
        for output in outputs:
            output.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.terminate()  # torchrun then ends its processes
        self._process.join(20)
        self._process.kill()
        self._process.join()
        if self.output:
            self.output.close()

    def poll(self):
        return self._process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def wait(self, timeout=100):
        self._process.join(timeout)
        assert self.poll() is not None, f"it did not end within {timeout} s"
        return self.poll()


def start(folder, *arguments, **environment):
    """A `Program` whose standard output and error can be read as `output`."""
    reader, writer = os.pipe()
    writers = [Connection(fd, readable=False) for fd in (writer, os.dup(writer))]
    program = Program(folder, arguments, environment, writers)
    program.output = os.fdopen(reader, errors="replace")
    return program


def run(folder, *arguments, timeout=100, **environment):
    """A `subprocess.CompletedProcess`."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        files = [Connection(os.dup(file.fileno()), readable=False) for file in (out, err)]
        with Program(folder, arguments, environment, files) as program:
            code = program.wait(timeout)
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(arguments, code, out.read(), err.read())
