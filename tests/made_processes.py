"""Processes that several tests start, and waiting for what they do."""
import os
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from sashimi_wb.core.processes import ForkServer, end_tree


def fork_server(function: str, prepare: str) -> ForkServer:
    """A server whose processes call a function of a module in this folder, "module:function"."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    return ForkServer(function, prepare, os.environ | {"PYTHONPATH": path})


def wait(until, wait_s: float = 300, every_s: float = 0.1, passing: tuple[type, ...] = ()):
    """Wait until a function returns something true, and return that; the errors `passing` mean that it does not yet."""
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        with suppress(*passing):
            if found := until(): return found
        time.sleep(every_s)
    raise AssertionError(f"waited {wait_s} s in vain")


@contextmanager
def training(program: str, runs: Path, n: int = 1):
    """A Python program that trains, once n of its runs have a checkpoint, and all processes below it."""
    top = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    try:
        wait(lambda: len(list(runs.glob("*/training/last.ckpt"))) >= n)
        yield top, psutil.Process(top.pid).children(recursive=True)
    finally: end_tree(top.pid)
