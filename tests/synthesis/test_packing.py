"""Packed weights: the system of the kernel, and the same bits on every processor."""
import hashlib

import numpy as np
import pytest
import torch
from made_models import fill_exactly

from sashimi_wb.models.sashimi import SaShiMiConfig
from sashimi_wb.models.wave_model import ModelConfig, WaveModel
from sashimi_wb.ssm.learned import KernelConfig, SSMKernel
from sashimi_wb.synthesis.packing import pack_model, step_matrices
from sashimi_wb.tokens.quantization import Quantizer

KERNELS = {"bilinear": ("diag", "bilinear"), "zoh": ("diag", "zoh"), "dplr": ("dplr", "bilinear")}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dt_tie", (True, False))
def test_the_system_is_that_of_the_kernel(name, dt_tie):
    form, disc = KERNELS[name]
    if form == "dplr" and not dt_tie: pytest.skip("the states of dplr share a step")
    torch.manual_seed(0)
    kernel = SSMKernel(12, KernelConfig(form, 32, disc=disc, n_ssm=3, dt_tie=dt_tie, dt_min=1e-4, dt_max=1.0))
    with torch.no_grad(): ssm, C = kernel.discrete()
    want = [ssm.dA - 1, ssm.dB, C[0], *([] if ssm.q is None else [ssm.q[0], ssm.p[0]])]
    for got, z in zip(step_matrices(kernel), want, strict=True):
        torch.testing.assert_close(torch.complex(*got), z, rtol=1e-12, atol=1e-12)


WANT = {"bilinear": "a80e0e65572ff6d4", "zoh": "83a38b6a4a0ed47d", "dplr": "dcaaf157d0cc6f1a"}


@pytest.mark.portable
@pytest.mark.parametrize("name", KERNELS)
def test_packed_weights_are_the_same_bits_on_every_processor(name):
    form, disc = KERNELS[name]
    backbone = SaShiMiConfig(20, 2, (2, 3), kernel=KernelConfig(form, 16, disc=disc))
    model = WaveModel(ModelConfig(8, "linear_projection", "dml", 4, backbone=backbone, predictor="adaptive"))
    packed = pack_model(fill_exactly(model, 1.0, middle=0.37), Quantizer(bits=8))
    assert np.isfinite(packed.weights).all()
    content = packed.weights.astype("<f4").tobytes() + packed.table.astype("<f4").tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == WANT[name]
