"""Repeat the numerical tests with other instruction sets and another number of threads, each in its own process."""
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

FOLDER = Path(__file__).parent
FILES = [str(p.relative_to(FOLDER)) for p in sorted(FOLDER.rglob("test_*.py"))
         if "pytest.mark.portable" in p.read_text(encoding="utf-8") and p != Path(__file__)]
OLD = {   # a processor without the instruction sets of the last fifteen years, and the C library's functions for it
    "ATEN_CPU_CAPABILITY": "default",
    "NPY_DISABLE_CPU_FEATURES": " ".join(f for f in __cpu_dispatch__ if __cpu_features__[f]),
    "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "",
    "MKL_CBWR": "COMPATIBLE", "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX,-AVX2,-FMA",
} | ({"OPENBLAS_CORETYPE": "Nehalem"} if platform.machine().lower() in ("x86_64", "amd64") else {})
MACHINES = {"old": OLD | {"OMP_NUM_THREADS": "1"},
            "other": {"ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}}

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", MACHINES)
def test_the_numbers_are_the_same_on(name, tmp_path):
    if name == "other" and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this processor has no AVX2")
    environment = os.environ | MACHINES[name] | ({"NUMBA_CACHE_DIR": str(tmp_path)} if name == "old" else {})
    done = subprocess.run([sys.executable, "-m", "pytest", "-m", "portable", "-p", "no:cacheprovider", "-p", "no:xdist",
                           *FILES],
                          cwd=FOLDER, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
