"""The kernels for graphics cards, in Triton's interpreter on the CPU, against their reference in torch."""
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

KERNELS = """
import torch
from gpu.test_gpu_generation import KINDS, drawn, small
from sashimi_wb.synthesis import triton_kernels
from sashimi_wb.synthesis.device_step import TorchKernels
from sashimi_wb.synthesis.triton_kernels import TritonKernels

torch.set_grad_enabled(False)
for kind in KINDS:
    for few, d_model, n in ((64, 24, 18), (1, 16, 18)):   # one program per row, and matrix products
        triton_kernels.FEW = few
        for batch, temperature in ((2, 1.0), (2, 0.0)):
            model, quantizer = small(*kind, d_model)
            (params, block), (found, others) = (drawn(model, quantizer, batch, n, temperature, kernels, "cpu")
                                                for kernels in (TorchKernels, TritonKernels))
            assert torch.equal(block.tokens, others.tokens)
            assert (found - params).abs().max() < 1e-5*params.abs().max()
model, quantizer = small(*KINDS[0], 16)
model.encoder.weight[:] = torch.inf
assert drawn(model, quantizer, 2, 3, 1.0, TritonKernels, "cpu")[1].bad.tolist() == [0, 0]
"""


LESSON = """
from pathlib import Path
from run_notebook import run

root = Path("..").resolve()
run(str(root / "nbs/synthesis/07_triton_kernels.ipynb"), str(root), [])
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton, which comes with torch for CUDA")
@pytest.mark.parametrize("code", [KERNELS, LESSON], ids=["kernels", "lesson"])
def test_triton_kernels_equal_torch(code, monkeypatch):
    """Triton reads the variable when it is imported, so each runs in its own process."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
