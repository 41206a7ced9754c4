"""The kernel by its spectrum equals the kernel by doubling, in every backend, at every kind of length."""
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from sashimi_wb.ssm import kernel_cauchy as module
from sashimi_wb.ssm.hippo import nplr, s4d
from sashimi_wb.ssm.kernel_cauchy import (
    KeopsSum,
    TorchSum,
    cauchy,
    cauchy_nodes,
    cauchy_ref,
    dplr_kernel_cauchy,
    keops_works,
)
from sashimi_wb.ssm.kernel_vandermonde import diagonal_kernel, vandermonde_keops, vandermonde_ref
from sashimi_wb.ssm.kernels import Discrete, discretize_dplr, kernel_by_doubling, zero_order_hold
from sashimi_wb.ssm.learned import KernelConfig, SSMKernel

torch.set_num_threads(1)
LENGTHS = [1, 2, 3, 4, 5, 31, 64, 100, 127, 256, 1000]


def system(h=3, n=8, rank=1, outputs=1, seed=0):
    "A, B, P, C, dt: HiPPO-LegS, a random further rank."
    g = torch.Generator().manual_seed(seed)
    def randn(*shape): return torch.randn(*shape, dtype=torch.complex128, generator=g)
    L, p, b, _ = (torch.as_tensor(v) for v in nplr(2*n))
    P = torch.cat([p.repeat(1, h, 1), 0.3*randn(rank - 1, h, n)])
    dt = torch.logspace(-3, -1, h, dtype=torch.float64)[:, None]
    return [x.clone().requires_grad_() for x in (L.repeat(h, 1), b.repeat(h, 1), P, randn(outputs, h, n), dt)]


def doubling(A, B, P, C, dt, length):
    return kernel_by_doubling(discretize_dplr(A, B, P, dt), C, length, torch.float64).K


def relative(a, b): return ((a - b).abs().max()/b.abs().max()).item()


def errors(length, inputs, backend, dtype):
    "Errors of the kernel and of every gradient, relative to the largest value, against doubling in float64."
    K, exact = dplr_kernel_cauchy(*inputs, length, backend, dtype), doubling(*inputs, length)
    assert K.dtype == dtype and K.shape == exact.shape
    weight = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got, wanted = (torch.autograd.grad((k*weight).sum(), inputs) for k in (K, exact))
    assert all(g.isfinite().all() for g in got)
    return [relative(K, exact), *map(relative, got, wanted)]


@pytest.mark.portable
@pytest.mark.parametrize("rank,outputs", [(1, 1), (1, 2), (2, 1), (3, 2)])
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_doubling(length, rank, outputs):
    assert max(errors(length, system(rank=rank, outputs=outputs), "torch", torch.float64)) < 1e-10


@pytest.mark.parametrize("length", [1, 64, 1001, 1024, 16000, 131072])
def test_float32_kernel_and_gradients(length):
    kernel, *gradients, step = errors(length, system(2, 32), "torch", torch.float32)
    assert kernel < 1e-5
    assert max(gradients) < 1e-4
    assert step < 2e-2       # a small difference of large sums: what the page says of float32


def test_infinite_node_is_its_limit():
    inputs = [x.detach() for x in system()]
    A, B, P, C, dt = inputs
    K = dplr_kernel_cauchy(*inputs, 64, dtype=torch.float64)
    limit = (dt[:, 0]*(B*module.cut_row(discretize_dplr(A, B, P, dt), C, 64)).sum(-1).real)
    torch.testing.assert_close(torch.fft.rfft(K)[..., -1].real, limit)


@pytest.mark.portable
def test_nodes():
    for length in (1, 2, 3, 64, 99, 2**20):
        s, c = cauchy_nodes(length)
        assert len(s) == length//2 + 1 and s[0] == 0 and c[0] == 1
        assert (c[-1] == 0) == (length % 2 == 0)
        assert (c >= 0).all() and (s*s + c*c - 1).abs().max() < 1e-6
    with pytest.raises(ValueError, match="at least 1"): cauchy_nodes(0)


@pytest.mark.portable
@pytest.mark.parametrize("block", [1, 50, 1000])
def test_blocks_of_any_size(block, monkeypatch):
    monkeypatch.setitem(module.BLOCK, "cpu", block)
    v, w = torch.randn(2, 3, 4, dtype=torch.complex128, requires_grad=True), torch.randn(3, 4, dtype=torch.complex128)
    w = torch.complex(-w.real.abs(), w.imag).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, w: cauchy(v, cauchy_nodes(8, torch.float64), w, "torch"), (v, w))
    torch.testing.assert_close(cauchy(v, cauchy_nodes(9, torch.float64), w, "torch"),
                               cauchy_ref(v, cauchy_nodes(9, torch.float64), w))


def test_unknown_backend():
    with pytest.raises(ValueError, match="unknown Cauchy backend 'cuda'; known: auto, torch, keops"):
        dplr_kernel_cauchy(*system(), 8, backend="cuda")


@pytest.fixture(scope="module")
def keops():
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        pytest.skip("pykeops: no C++ compiler")
    if not keops_works(): pytest.fail("pykeops could not compile though there is a C++ compiler")


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 2, 5, 64, 100, 256, 1024, 2048])
def test_keops_equals_doubling(keops, length):
    kernel, *gradients, step = errors(length, system(n=16), "keops", torch.float32)
    assert kernel < 1e-5
    assert max(gradients) < 1e-4
    assert step < 2e-2


@pytest.mark.slow
def test_keops_sum_equals_reference(keops):
    v, w = torch.randn(4, 3, 8, dtype=torch.complex64), torch.complex(-torch.rand(3, 8) - 0.1, torch.randn(3, 8))
    for length in (1, 2, 33, 64):
        torch.testing.assert_close(cauchy(v, cauchy_nodes(length), w, "keops"), cauchy_ref(v, cauchy_nodes(length), w),
                                                             rtol=1e-4, atol=1e-4)


def diagonal_system(h=3, n=8, outputs=2):
    "step, dB, C: S4D-Lin."
    dt, A = torch.logspace(-3, -1, h, dtype=torch.float64)[:, None], torch.as_tensor(s4d(2*n, "lin")).expand(h, -1)
    C = torch.randn(outputs, h, n, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    return [z.clone().requires_grad_() for z in (*zero_order_hold(A, torch.ones_like(A), dt), C)]


def diagonal_errors(length, backend, dtype):
    "Errors of the kernel and of every gradient, relative to the largest value, against a float64 Vandermonde matrix."
    inputs = step, dB, C = diagonal_system()
    weight = torch.randn(2, 3, length, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    K, exact = diagonal_kernel(Discrete(step, dB), C, length, backend, dtype), vandermonde_ref(C*dB, step, length)
    assert K.dtype == dtype and K.shape == exact.shape
    got, wanted = (torch.autograd.grad((k*weight).sum(), inputs, materialize_grads=True) for k in (K, exact))
    return [(a - b).abs().max().item()/max(b.abs().max().item(), 1e-300) for a, b in zip((K, *got), (exact, *wanted))]


@pytest.mark.portable
@pytest.mark.parametrize("length", LENGTHS)
def test_diagonal_kernel(length):
    assert max(diagonal_errors(length, "torch", torch.float64)) < 1e-12
    assert max(diagonal_errors(length, "auto", torch.float32)) < 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 2, 5, 64, 100, 1024, 2048, 16000])
def test_keops_vandermonde(keops, length):
    assert max(diagonal_errors(length, "keops", torch.float64)) < 1e-11


@pytest.mark.slow
def test_keops_vandermonde_of_a_dead_mode(keops):
    v, step = torch.ones(2, 1, 2, dtype=torch.complex128), torch.tensor([[0j, 0.5]], dtype=torch.complex128)
    torch.testing.assert_close(vandermonde_keops(v, step, 4), vandermonde_ref(v, step, 4))


SETTINGS = {"legs": KernelConfig(d_state=16), "legt": KernelConfig(d_state=16, init="legt", n_ssm=None),
            "zoh": KernelConfig("diag", 16, disc="zoh"),
            "bilinear": KernelConfig("diag", 16, disc="bilinear", dt_tie=False)}


# pykeops compiles for 16 s for every rank; rank 1, that of "legs", is compared above
@pytest.mark.slow
@pytest.mark.parametrize("name,method", [*((name, "torch") for name in SETTINGS),
                                         ("legt", "keops"), ("zoh", "keops"), ("bilinear", "keops")])
def test_one_setting_chooses_the_method(request, name, method):
    if method == "keops": request.getfixturevalue("keops")
    torch.manual_seed(0)
    kernel = SSMKernel(3, SETTINGS[name], channels=2)
    other = SSMKernel(3, replace(SETTINGS[name], method=method), channels=2)
    other.load_state_dict(kernel.state_dict())
    for length in (1, 2, 64, 101, 256):
        weight, results = torch.randn(2, 3, length), []
        for k in (kernel, other):
            k.zero_grad()
            K = k(length)
            (K*weight).sum().backward()
            results.append([K.detach(), *(p.grad for p in k.parameters())])
        for a, b in zip(*results): assert b.isfinite().all() and relative(b, a) < 1e-5


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named 'pykeops_cpp_1'"),
                                   RuntimeError("g++: not found"), OSError()])
def test_without_a_compiler_torch_and_one_line(error, monkeypatch, caplog):
    def fail(*_): raise error
    monkeypatch.setattr(KeopsSum, "values", fail)
    keops_works.cache_clear()
    try:
        with caplog.at_level(logging.INFO, "sashimi_wb"):
            inputs = system()
            for _ in range(2):
                torch.testing.assert_close(dplr_kernel_cauchy(*inputs, 16, "keops"),
                                           dplr_kernel_cauchy(*inputs, 16, "torch"))
        assert [r.levelname for r in caplog.records] == ["INFO"] and "pykeops cannot compile" in caplog.text
        assert module.BACKENDS["auto"](torch.device("cuda")) is TorchSum
    finally: keops_works.cache_clear()


@pytest.mark.slow
def test_real_machine_without_a_compiler(tmp_path):
    """Without a compiler and with an empty cache the sum is right, one line is logged, and nothing goes to stdout."""
    code = """
import sys, logging, torch
logging.basicConfig(level=logging.INFO, format="LOG %(name)s %(message)s")
from sashimi_wb.ssm.kernel_cauchy import *
assert "pykeops" not in sys.modules
v, w, nodes = torch.randn(1, 1, 2, dtype=torch.complex64), torch.tensor([[-1 + 1j, -2 + 0j]]), cauchy_nodes(8)
for _ in range(2): torch.testing.assert_close(cauchy(v, nodes, w, "keops"), cauchy_ref(v, nodes, w))
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("CXX", "PATH")}
    environment |= {"PATH": str(tmp_path), "KEOPS_CACHE_FOLDER": str(tmp_path/"cache")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert sum(line.startswith("LOG sashimi_wb pykeops cannot compile") for line in done.stderr.splitlines()) == 1


def test_auto_on_a_cpu_needs_no_pykeops(monkeypatch):
    monkeypatch.setattr(module, "keops_works", lambda: pytest.fail("auto on a CPU must not try pykeops"))
    v, w = torch.ones(1, 1, 2, dtype=torch.complex64), torch.tensor([[-1 + 1j, -2 + 0j]])
    torch.testing.assert_close(cauchy(v, cauchy_nodes(6), w), cauchy_ref(v, cauchy_nodes(6), w))
