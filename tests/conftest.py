"""Shared settings: one thread per test process, no display, a cache of its own, hypothesis without deadlines or luck."""
import os
import tempfile

# Before torch and NumPy are imported: `make test` runs two processes, and more threads than cores are slower, not faster.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("MPLBACKEND", "Agg")
cache = tempfile.TemporaryDirectory(prefix="sashimi_wb_tests_")  # also for the notebooks that tests run
os.environ["SASHIMI_WB_CACHE"] = cache.name

import pytest
from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


SLOW = {  # files that train, compile, start processes or try by the thousand: `make check` leaves them out
    "test_bad_input.py", "test_cli.py", "test_compile.py", "test_containers.py", "test_engine.py",
    "test_float32_error.py", "test_generation.py",
    "test_html.py", "test_kernels.py", "test_machines.py", "test_notebooks.py", "test_runs.py",
    "test_shipped_models.py", "test_targets.py",
    "test_trainer.py", "test_wheel.py", "test_without_compiler.py"}


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.name in SLOW or "browser" in item.path.parts: item.add_marker(pytest.mark.slow)
    longest_first(items)


def longest_first(items):
    """What takes longest comes first, so that no process is left alone with it at the end: pages in a browser, then notebooks."""
    items.sort(key=lambda item: ("browser" not in item.path.parts, item.path.name != "test_notebooks.py"))
