"""Float32 against float64: kernels, gradients, the full-size model run in three ways, errors over time.

`benchmarks/accuracy.py` prints the same errors at full length. The error of a channel is relative to its peak, that of
a gradient to its largest entry.
"""
import copy
import dataclasses

import pytest
import torch
from test_sequence import close
from three_ways import in_windows, leaves, step_through

from sashimi_wb.models.sashimi import SaShiMi, SaShiMiConfig
from sashimi_wb.models.wave_model import ModelConfig, WaveModel
from sashimi_wb.ssm.kernel_cauchy import cut_row, dplr_kernel_cauchy
from sashimi_wb.ssm.kernels import discretize_dplr
from sashimi_wb.ssm.learned import KernelConfig, SSMKernel
from sashimi_wb.ssm.s4 import S4

pytestmark = pytest.mark.slow

torch.set_num_threads(1)
FORMS = {"dplr": KernelConfig(), "zoh": KernelConfig("diag", disc="zoh"),
         "bilinear": KernelConfig("diag", init="lin", n_ssm=None)}
LENGTHS = [1, 2, 3, 63, 64, 65, 1000, 1024, 16000, 16001, 131072]
SIZES = [(16, 64), (4, 16), (2, 256)]                                            # width and state size


def made(form, width=16, d_state=64, noise=0.0):
    "A kernel in float32 and the same in float64, with noise on every parameter."
    torch.manual_seed(0)
    kernel = SSMKernel(width, dataclasses.replace(FORMS[form], d_state=d_state))
    with torch.no_grad():
        for p in kernel.parameters(): p.add_(noise*torch.randn_like(p))
    return kernel, copy.deepcopy(kernel).double()


def sums(kernel, length, dtype=torch.float32):
    "The kernel by way of its spectrum."
    return dplr_kernel_cauchy(*kernel.continuous(), length, "torch", dtype)


def relative(a, b): return ((a.double() - b).abs().max()/b.abs().max()).item()


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("width,d_state", SIZES)
@torch.no_grad()
def test_every_channel_of_a_kernel(width, d_state, form, noise):
    """A kernel of few samples may happen to vanish there, so a channel's peak is that of 64 samples at least."""
    kernel, exact = made(form, width, d_state, noise)
    ways = [(lambda n: kernel(n), 2e-6), (lambda n: kernel.window(n).K, 2e-6)]
    # sums in float32: quiet channels lose a digit
    if form == "dplr":
        ways += [(lambda n: sums(kernel, n, torch.float64).float(), 2e-7), (lambda n: sums(kernel, n), 1e-4)]
    for length in LENGTHS if not noise and width == 16 else LENGTHS[:-1]:
        wanted, peaks = exact(length), exact(max(length, 64)).abs().amax(-1)
        for way, limit in ways:
            assert ((way(length) - wanted).abs().amax(-1)/peaks).max() < limit, length


@pytest.mark.parametrize("length", [2, 64, 1024, 16000])
@torch.no_grad()
def test_the_infinite_node_in_float32(length):
    kernel, exact = made("dplr")
    A, B, P, C, dt = exact.continuous()
    limit = dt[:, 0]*(B*cut_row(discretize_dplr(A, B, P, dt), C, length)).sum(-1).real   # sum of (-1)^j K[j]
    for K in (kernel(length), sums(kernel, length)):
        spectrum = torch.fft.rfft(K.double())
        assert (spectrum[..., -1].real - limit).abs().max() < 1e-5*spectrum.abs().max()


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_every_parameter(form, noise):
    """White noise has no symmetry that cancels. With float32 sums the gradient of dt is a difference of large sums."""
    kernel, exact = made(form, noise=noise)
    names = [name for name, _ in kernel.named_parameters()]
    ways = [(lambda n: kernel(n), 5e-6), (lambda n: kernel.window(n).K, 5e-6)]
    if form == "dplr": ways += [(lambda n: sums(kernel, n, torch.float64), 1e-6), (lambda n: sums(kernel, n), None)]
    for length in LENGTHS[:-1]:
        weight = torch.randn(1, 16, length, dtype=torch.float64)
        wanted = torch.autograd.grad((exact(length)*weight).sum(), list(exact.parameters()))
        for way, limit in ways:
            got = torch.autograd.grad((way(length)*weight).sum(), list(kernel.parameters()))
            for name, g, w in zip(names, got, wanted, strict=True):
                assert relative(g, w) < (limit or (1e-2 if name == "inv_dt" else 5e-4)), (length, name)


@pytest.mark.parametrize("form", FORMS)
def test_a_gradient_that_cancels(form):
    """The sum of a kernel is its gain at frequency 0, which no step changes: the gradient of dt is nearly zero."""
    kernel, exact = made(form)
    noise = torch.randn(1, 16, 16000, dtype=torch.float64)
    (got,), (wanted,), (scale,) = (torch.autograd.grad(f(k(16000)), k.inv_dt) for k, f in
                                   ((kernel, torch.sum), (exact, torch.sum), (exact, lambda K: (K*noise).sum())))
    assert (got - wanted).abs().max() < 2e-6*scale.abs().max() and wanted.abs().max() < 1e-3*scale.abs().max()


def model_of(form, n_layers=8):
    torch.manual_seed(0)
    return WaveModel(ModelConfig(8, backbone=SaShiMiConfig(n_layers=n_layers, kernel=FORMS[form])))


@pytest.mark.parametrize("form", ["dplr", "zoh"])
def test_gradients_of_a_whole_model(form):
    model, (x, y) = model_of(form, 2), torch.randint(256, (2, 1, 1001, 1))
    exact = copy.deepcopy(model).double()
    losses = [m.loss(x, y) for m in (model, exact)]
    for loss in losses: loss.backward()
    assert abs(losses[0] - losses[1]) < 1e-6
    for (name, p), q in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert relative(p.grad, q.grad) < 1e-5, name


@pytest.mark.parametrize("form", ["dplr", "zoh"])
@torch.no_grad()
def test_full_size_three_ways(form):
    model, x = model_of(form).eval(), torch.randint(256, (1, 1536, 1))
    y = model(x, need_state=False)[0]
    close(in_windows(model, x, 256)[0], y, 1e-5)
    close(in_windows(model, x[:, :320], 16)[0], y[:, :320], 1e-5)
    close(step_through(model, x[:, :100])[0], y[:, :100], 1e-5)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_the_error_of_steps_does_not_grow(form):
    """Rounding errors of a state decay as its input does: within the longest memory, here 2,000 samples."""
    torch.manual_seed(0)
    layer, u = S4(8, FORMS[form]), torch.randn(1, 12288, 8)
    exact = copy.deepcopy(layer).double()(u.double(), need_state=False)[0]
    error = ((step_through(layer, u)[0] - exact).abs().amax(-1)[0]/exact.abs().max()).view(4, -1).amax(1)
    assert error.max() < 1e-5 and error[3] < 2*error[1]
    carried = ((in_windows(layer, u, 512)[0] - exact).abs().amax(-1)[0]/exact.abs().max()).view(4, -1).amax(1)
    assert carried.max() < 1e-5 and carried[3] < 2*carried[1]


def detached(state): return tuple(map(detached, state)) if isinstance(state, tuple) else state.detach()


@pytest.mark.parametrize("form", ["dplr", "zoh"])
def test_windows_backpropagate_as_far_as_the_state_lets_them(form):
    """Windows against steps: the state cut off at every border, at every second one, or nowhere."""
    torch.manual_seed(1)
    module = SaShiMi(4, 1, (2, 3), kernel=dataclasses.replace(FORMS[form], d_state=8)).double()
    x, target = torch.randn(2, 2, 30, 4, dtype=torch.float64)
    size = 10

    def gradients(run, cut):
        module.zero_grad()
        state, loss = module.initial_state(2), 0
        for i in range(3):
            part = slice(i*size, (i + 1)*size)
            if i and cut(i): state = detached(state)
            y, state = run(module, x[:, part], state)
            loss = loss + (y*target[:, part]).sum()
        loss.backward()
        return [p.grad.clone() for p in module.parameters()]

    def windows(module, x, state): return module(x, state)
    kinds = [gradients(windows, cut) for cut in (lambda i: True, lambda i: i == 2, lambda i: False)]
    for got, cut in zip(kinds, (lambda i: True, lambda i: i == 2, lambda i: False)):
        for g, w in zip(got, gradients(step_through, cut), strict=True): close(g, w, 1e-9)
    assert any(relative(a, b) > 1e-3 for a, b in zip(kinds[0], kinds[2]))        # what is cut off was something


@pytest.mark.parametrize("form", ["dplr", "zoh"])
def test_training_on_carried_windows(form):
    """One backward pass per window, with a detached state: the gradients add up to the truncated one."""
    torch.manual_seed(1)
    module = SaShiMi(4, 1, (2, 3), kernel=dataclasses.replace(FORMS[form], d_state=8)).double()
    x, state, total = torch.randn(2, 47, 4, dtype=torch.float64), None, 0
    for part in x.split(11, 1):                                                  # windows that fit no pool
        y, state = module(part, state)
        y.square().sum().backward()
        state = detached(state)
    got = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    state = None
    for part in x.split(11, 1):
        y, state = module(part, state if state is None else detached(state))
        total = total + y.square().sum()
    total.backward()
    for p, g in zip(module.parameters(), got, strict=True): close(g, p.grad, 1e-10)
    assert not any(leaf.requires_grad for leaf in leaves(detached(state)))


@pytest.mark.parametrize("form", ["dplr", "zoh"])
def test_gradients_reach_the_state(form):
    torch.manual_seed(2)
    layer, x = S4(3, dataclasses.replace(FORMS[form], d_state=8)).double(), torch.randn(2, 21, 3, dtype=torch.float64)
    state = torch.randn(2, 3, 4, dtype=torch.complex128, requires_grad=True)

    def gradient(run):
        y, after = run(layer, x, state)
        return torch.autograd.grad((y*x).sum() + after.abs().square().sum(), state)[0]

    close(torch.view_as_real(gradient(lambda m, x, s: m(x, s))), torch.view_as_real(gradient(step_through)), 1e-11)


@pytest.mark.parametrize("pool", [(), (1,), (2,), (5,), (40,), (4, 4), (3, 5), (2, 2, 2)], ids=str)
@torch.no_grad()
def test_any_length_is_a_prefix(pool):
    """What a length lacks to the pools' product is filled up inside and changes nothing, to the last bits."""
    torch.manual_seed(3)
    module, x = SaShiMi(4, 1, pool, kernel=KernelConfig("dplr", 4)).double(), torch.randn(1, 97, 4, dtype=torch.float64)
    y = module(x)[0]
    for length in range(1, 41):
        close(module(x[:, :length], need_state=False)[0], y[:, :length], 1e-12)
        start, state = module(x[:, :length])
        close(start, y[:, :length], 1e-12)
        close(module(x[:, length:], state)[0], y[:, length:], 1e-11)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW], ids=lambda o: o.__name__)
@pytest.mark.parametrize("form", FORMS)
def test_training_with_steps_much_too_long(form, optimizer):
    """Learning rate 10 on all state-space parameters, on the loss and against it: whatever comes out, nothing grows."""
    torch.manual_seed(4)
    model = WaveModel(ModelConfig(4,
                                  backbone=SaShiMiConfig(8, 1, (2,),
                                                         kernel=dataclasses.replace(FORMS[form], d_state=8))))
    x, y = torch.randint(16, (2, 2, 200, 1))
    kernels = [m for m in model.modules() if isinstance(m, SSMKernel)]
    pushed = optimizer([p for k in kernels for p in k.parameters()], lr=10.0)
    for i in range(12):
        pushed.zero_grad()
        (model.loss(x, y)*(1 if i % 3 else -100)).backward()
        pushed.step()
        for kernel in kernels:
            with torch.no_grad():
                assert (kernel.continuous()[0].real < 0).all() and (kernel.discrete()[0].dA.abs() <= 1 + 1e-12).all()
                assert kernel(1000).isfinite().all() and all(p.isfinite().all() for p in kernel.parameters())
    assert model.loss(x, y).isfinite()
