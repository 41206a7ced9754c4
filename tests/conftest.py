"""Shared settings: one thread per test process, no display, hypothesis without deadlines or luck."""
import os

# Before torch and NumPy are imported: `make test` runs two processes, and more threads than cores are slower, not faster.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")
