"""State spaces on a GPU: kernels, their gradients, states, sums over the spectrum, convolution, the S4 layer."""
import pytest
import torch
from parity import DTYPES, FORMS, THREE_WAYS, TOLERANCE, close, close_gradients, twins
from three_ways import in_windows, step_through

from sashimi_wb.ssm.convolution import fft_conv
from sashimi_wb.ssm.kernel_cauchy import dplr_kernel_cauchy
from sashimi_wb.ssm.kernels import state_after, state_response
from sashimi_wb.ssm.learned import SSMKernel
from sashimi_wb.ssm.s4 import S4, S4Block, two_sided_conv

LENGTHS = [1, 2, 65, 1000, 16384]


def kernels(form, device, dtype, channels=1):
    torch.manual_seed(0)
    return twins(SSMKernel(8, FORMS[form], channels), device, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_training_kernel_and_its_gradients(form, dtype, device):
    kernel, exact = kernels(form, device, dtype)
    for length in LENGTHS:
        noise = torch.randn(1, 8, length, dtype=torch.float64)      # has no symmetry that cancels
        got, wanted = kernel(length), exact(length)
        assert got.dtype == dtype and got.device.type == device.type
        close(got, wanted, TOLERANCE[dtype], length)
        for module, K in ((kernel, got), (exact, wanted)):
            module.zero_grad()
            (K*noise.to(K)).sum().backward()
        close_gradients(kernel, exact, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_kernel_by_doubling_and_states(form, dtype, device):
    kernel, exact = kernels(form, device, dtype)
    u, state = torch.randn(2, 8, 1000, dtype=torch.float64), torch.randn(2, 8, 32, dtype=torch.complex128)
    for length in LENGTHS[:-1]:
        window, wanted = kernel.window(length), exact.window(length)
        own = state.to(device, torch.complex64 if dtype == torch.float32 else torch.complex128)
        close(window.K, wanted.K, TOLERANCE[dtype], length)
        close(state_response(window, own), state_response(wanted, state), TOLERANCE[dtype], length)
        part = u[..., :length]
        close(state_after(window, part.to(device, dtype), own), state_after(wanted, part, state), TOLERANCE[dtype])


def test_doubling_has_the_gradients_of_the_training_kernel(device):
    for form in FORMS:
        kernel, exact = kernels(form, device, torch.float64)
        for module, K in ((kernel, kernel.window(300).K), (exact, exact(300))): K.square().sum().backward()
        close_gradients(kernel, exact, TOLERANCE[torch.float64])


@pytest.mark.parametrize("form", ["dplr", "rank 2"])
def test_sums_over_the_spectrum(form, device):
    kernel, exact = kernels(form, device, torch.float64)
    for length in (64, 1001):
        for module in (kernel, exact):
            module.zero_grad()
            dplr_kernel_cauchy(*module.continuous(), length, "torch").square().sum().backward()
        close_gradients(kernel, exact, TOLERANCE[torch.float64])
        got = dplr_kernel_cauchy(*kernel.continuous(), length, "torch")
        close(got, exact(length), TOLERANCE[torch.float64], length)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_convolution_and_its_gradients(dtype, device):
    torch.manual_seed(0)
    made = [torch.randn(shape, dtype=torch.float64) for shape in ((3, 4, 500), (2, 4, 500), (2, 4, 500), (2, 4))]
    def run(device, dtype):
        u, ahead, behind, D = (x.to(device, dtype).requires_grad_() for x in made)
        out = fft_conv(u, ahead, D), two_sided_conv(u, ahead, behind, D)
        return *out, *torch.autograd.grad(sum(y.square().mean() for y in out), (u, ahead, behind, D))
    for got, wanted in zip(run(device, dtype), run("cpu", torch.float64)): close(got, wanted, TOLERANCE[dtype])


def test_convolution_in_blocks_of_channels(device, monkeypatch):
    torch.manual_seed(0)
    u, K = torch.randn(2, 6, 300, device=device), torch.randn(1, 6, 300, device=device)
    whole = fft_conv(u, K)
    monkeypatch.setattr("sashimi_wb.ssm.convolution.BLOCK", 2*2*600)
    close(fft_conv(u, K), whole, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_three_ways_to_run_a_layer(form, dtype, device):
    torch.manual_seed(0)
    layer, exact = twins(S4Block(8, FORMS[form]), device, dtype)
    x = torch.randn(2, 120, 8, dtype=torch.float64)
    wanted, _ = exact(x)
    x = x.to(device, dtype)
    whole, after = layer(x)
    close(whole, wanted, TOLERANCE[dtype])
    for way in (in_windows(layer, x, [1, 50, 69]), step_through(layer, x, None)):
        for got, wanted in zip(way, (whole, after)): close(got, wanted, THREE_WAYS[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_a_layer(form, dtype, device):
    torch.manual_seed(0)
    layer, exact = twins(S4(8, FORMS[form], channels=2), device, dtype)
    x = torch.randn(2, 777, 8, dtype=torch.float64)
    for module, u in ((layer, x.to(device, dtype)), (exact, x)):
        module(u, need_state=False)[0].square().mean().backward()
    close_gradients(layer, exact, TOLERANCE[dtype])
