"""Settings of all tests: one thread per process, no display, a temporary cache, repeatable examples of hypothesis."""
import os
import tempfile

# Set before torch and NumPy are imported: `make test` runs two processes, and more threads than cores slow both down.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("MPLBACKEND", "Agg")
cache = tempfile.TemporaryDirectory(prefix="sashimi_wb_tests_")  # also for the notebooks that tests run
os.environ["SASHIMI_WB_CACHE"] = cache.name

import pytest
from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


LONGEST = ("test_slurm.py", "test_machines.py", "test_wheel.py", "test_trainer.py", "test_runs.py")


def pytest_collection_modifyitems(items):
    for item in items:
        if "browser" in item.path.parts: item.add_marker(pytest.mark.slow)
    items[:] = dealt(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def dealt(items, n):
    """The tests in an order in which each of n processes takes an equal share and begins it with something long.

    Slow tests of a file stay together, since they share what they start; so do those of the browser. Who has done its
    share takes over half of the largest one left."""
    shares, files, quick = [[] for _ in range(n)], {}, []
    for item in sorted(items, key=run_order):
        if not item.get_closest_marker("slow"): quick.append(item)
        else: files.setdefault("browser" if run_order(item) == 0 else item.path, []).append(item)
    for i, some in enumerate(files.values()): shares[i % n] += some
    for i, share in enumerate(shares):
        size = len(items)//n if i < n - 1 else len(items)
        share += quick[:max(0, size - len(share))]
        del quick[:max(0, size - len(share))]
    return sum(shares, [])


def run_order(item) -> int:
    """Longest first, so that all processes end together: browser tests, the longest files, others."""
    if "browser" in item.path.parts: return 0
    return 1 + LONGEST.index(item.path.name) if item.path.name in LONGEST else 1 + len(LONGEST)
