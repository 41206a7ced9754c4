"""Tests that run on a GPU and compare it with the CPU: `python -m pytest tests/gpu`, skipped where there is none.

SASHIMI_WB_REHEARSE_GPU=1 runs them with the CPU in place of the GPU, to test the tests.
"""
import os
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
REHEARSED = os.environ.get("SASHIMI_WB_REHEARSE_GPU") == "1"


def pytest_collection_modifyitems(items):
    without = not torch.cuda.is_available() and not REHEARSED
    skipped = pytest.mark.skip(reason="needs a CUDA device; SASHIMI_WB_REHEARSE_GPU=1 uses a CPU")
    for item in items:
        if HERE not in item.path.parents: continue
        item.add_marker(pytest.mark.gpu)
        if without: item.add_marker(skipped)


@pytest.fixture(scope="session")
def device():
    """The GPU, or the CPU in a rehearsal. Float32 products are not shortened to TF32."""
    assert torch.get_float32_matmul_precision() == "highest"
    return torch.device("cpu" if REHEARSED else "cuda")
