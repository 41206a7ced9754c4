"""Settings of all tests: one thread per process, no display, a temporary cache, repeatable examples of hypothesis."""
import os
import tempfile

# Set before torch and NumPy are imported: `make test` runs two processes, and more threads than cores slow both down.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" not in os.environ:      # one for all processes of `make test`: they inherit the variable
    cache = tempfile.TemporaryDirectory(prefix="sashimi_wb_tests_")  # also for the notebooks that tests run
    os.environ["SASHIMI_WB_CACHE"] = cache.name

import pytest
from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


LONGEST = ("test_wheel.py", "test_machines.py", "test_trainer.py", "test_runs.py")  # files with tests of 10 to 30 s


def pytest_collection_modifyitems(items):
    for item in items:
        if "browser" in item.path.parts: item.add_marker(pytest.mark.slow)
    items.sort(key=run_order)


def run_order(item) -> int:
    """Longest first, so that all processes end together: browser tests, the longest files, slow tests, others."""
    if "browser" in item.path.parts: return 0
    if item.path.name in LONGEST: return 1
    return 2 if item.get_closest_marker("slow") else 3
