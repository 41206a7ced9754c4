"""Three ways of running one function: convolution, stepping, windows with carried state; float32 and float64."""
import copy
import io
import itertools

import pytest
import torch

from sashimi_wb.kernels import kernel_by_doubling, kernel_ref
from sashimi_wb.model import ModelConfig, WaveModel
from sashimi_wb.s4 import S4, S4Block
from sashimi_wb.sashimi import SaShiMi, SaShiMiConfig
from sashimi_wb.ssm import KernelConfig, SSMKernel

torch.set_num_threads(1)
KERNELS = {"dplr": KernelConfig("dplr", 8), "zoh": KernelConfig("diag", 8, "lin", "zoh"),
           "bilinear": KernelConfig("diag", 8, "inv", "bilinear", n_ssm=None)}
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}
DTYPES = list(TOLERANCE)


def leaves(state): return [x for part in state for x in leaves(part)] if isinstance(state, tuple) else [state]


def close(a, b, tolerance):
    "Equal to a share of the largest value."
    assert a.shape == b.shape
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance*max(b.abs().max().item(), 1e-3))


def same_state(a, b, tolerance):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        if x.numel(): close(x, y, tolerance)
        else: assert x.shape == y.shape


def step_through(module, x, state=None):
    state, out = module.initial_state(len(x)) if state is None else state, []
    for k in range(x.shape[1]):
        y, state = module.step(x[:, k], state)
        out.append(y)
    return torch.stack(out, 1), state


def in_windows(module, x, sizes, state=None):
    out = []
    for part in x.split(sizes, 1):
        y, state = module(part, state)
        out.append(y)
    return torch.cat(out, 1), state


def cut(length, sizes):
    "Window sizes of the given cycle that add up to the length."
    out = []
    for size in itertools.cycle(sizes):
        out.append(min(size, length - sum(out)))
        if sum(out) == length: return out


def backbone(kernel="dplr", dtype=torch.float64, pool=(2, 3), **options):
    torch.manual_seed(3)
    return SaShiMi(4, 1, pool, 2, 2, KERNELS[kernel], **options).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
@torch.no_grad()
def test_three_ways_at_every_length(kernel, dtype):
    module, x = backbone(kernel, dtype), torch.randn(2, 70, 4, dtype=dtype)
    stepped, _ = step_through(module, x)
    for length in [*range(1, 9), 23, 24, 47, 64, 70]:
        y, state = module(x[:, :length])
        close(y, stepped[:, :length], TOLERANCE[dtype])
        windows, carried = in_windows(module, x[:, :length], cut(length, (5, 1, 7, 12, 3)))
        close(windows, y, TOLERANCE[dtype])
        same_state(carried, state, TOLERANCE[dtype])
        close(module(x[:, :length], need_state=False)[0], y, TOLERANCE[dtype])   # the training kernel is the same kernel


@pytest.mark.parametrize("options", [{"pool": ()}, {"pool": (1,)}, {"pool": (5,)}, {"pool": (2, 2, 2)}, {"prenorm": False},
                                     {"norm": "scalar"}, {"pool_activation": True}, {"pool_weight_norm": False}], ids=str)
@torch.no_grad()
def test_three_ways_of_every_option(options):
    module, x = backbone(**options), torch.randn(2, 37, 4, dtype=torch.float64)
    y, state = module(x)
    stepped, after = step_through(module, x)
    windows, carried = in_windows(module, x, [1, 2, 3, 11, 20])
    close(stepped, y, 1e-11)
    close(windows, y, 1e-11)
    same_state(after, state, 1e-11)
    same_state(carried, state, 1e-11)


@pytest.mark.parametrize("encoder,head", [("embedding", "categorical"), ("linear_projection", "dml")])
@torch.no_grad()
def test_three_ways_of_a_model(encoder, head):
    torch.manual_seed(0)
    model = WaveModel(ModelConfig(6, encoder, head, 3, backbone=SaShiMiConfig(8, 1, (4, 2), kernel=KERNELS["dplr"])))
    x = torch.randint(64, (2, 45, 1)) if encoder == "embedding" else torch.rand(2, 45, 1)*2 - 1
    y, state = model(x)
    stepped, after = step_through(model, x)
    windows, _ = in_windows(model, x, [9, 1, 35])
    close(stepped, y, 2e-5)
    close(windows, y, 2e-5)
    same_state(after, state, 2e-5)


@torch.no_grad()
def test_one_way_goes_on_where_another_stopped():
    module, x = backbone(), torch.randn(2, 40, 4, dtype=torch.float64)
    y, _ = module(x)
    _, state = module(x[:, :17])
    middle, state = step_through(module, x[:, 17:30], state)
    end, _ = module(x[:, 30:], state)
    close(torch.cat([middle, end], 1), y[:, 17:], 1e-11)


@torch.no_grad()
def test_the_future_does_not_reach_the_past():
    module, x = backbone(), torch.randn(1, 30, 4, dtype=torch.float64)
    later = x.clone()
    later[:, 13:] += 1
    close(module(later)[0][:, :13], module(x)[0][:, :13], 1e-11)


@torch.no_grad()
def test_a_callers_state_is_not_changed():
    module, x = backbone(), torch.randn(2, 30, 4, dtype=torch.float64)
    _, state = module(x[:, :7])
    before = [t.clone() for t in leaves(state)]
    first, _ = step_through(module, x[:, 7:], state)
    module(x[:, 7:], state)
    for t, b in zip(leaves(state), before, strict=True): assert torch.equal(t, b)
    again, _ = step_through(module, x[:, 7:], state)                             # two branches from one state
    assert torch.equal(first, again)


@torch.no_grad()
def test_a_state_can_be_kept_and_a_module_copied():
    module, x = backbone(), torch.randn(2, 30, 4, dtype=torch.float64)
    y, _ = module(x)
    _, state = step_through(module, x[:, :11])                                   # the step cache is filled, too
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    kept = torch.load(buffer, weights_only=True)
    twin = copy.deepcopy(module)
    close(in_windows(twin, x[:, 11:], [4, 15], kept)[0], y[:, 11:], 1e-11)
    for p in twin.parameters(): p.mul_(1.5)                                      # the copy shares nothing
    close(module(x)[0], y, 1e-13)


@torch.no_grad()
def test_step_matrices_follow_the_parameters():
    module, x = S4(3, KERNELS["dplr"]).double(), torch.randn(1, 9, 3, dtype=torch.float64)
    step_through(module, x)
    module.kernel.inv_dt.add_(0.5)
    close(step_through(module, x)[0], module(x)[0], 1e-11)
    module.float()
    close(step_through(module, x.float())[0], module(x.float())[0], 2e-5)


@pytest.mark.parametrize("length", [1, 2, 64, 1023, 1024, 16000])
@pytest.mark.parametrize("form", ["dplr", "diag"])
@torch.no_grad()
def test_float32_kernels_are_as_good_as_float64(form, length):
    torch.manual_seed(1)
    kernel = SSMKernel(3, KernelConfig(form, 64))
    exact = copy.deepcopy(kernel).double()
    for K in (kernel(length), kernel.window(length).K): close(K.double(), exact(length), 1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@torch.no_grad()
def test_a_kernel_is_an_impulse_response(kernel):
    torch.manual_seed(2)
    module = SSMKernel(3, KERNELS[kernel], channels=2).double()
    ssm, C = module.discrete()
    for length in (1, 2, 3, 17, 64): close(kernel_by_doubling(ssm, C, length, torch.float64).K, kernel_ref(ssm, C, length), 1e-12)


@pytest.mark.parametrize("length", [1, 2, 7, 16])
@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_against_finite_differences(kernel, length):
    torch.manual_seed(4)
    module = S4(2, KernelConfig(KERNELS[kernel].form, 4, KERNELS[kernel].init, KERNELS[kernel].disc)).double()
    names, values = zip(*((k, v.detach().requires_grad_()) for k, v in module.named_parameters()))
    x = torch.randn(1, length, 2, dtype=torch.float64, requires_grad=True)

    def run(x, *values): # the training kernel, without states
        return torch.func.functional_call(module, dict(zip(names, values)), (x, None, False))[0]

    assert torch.autograd.gradcheck(run, (x, *values), eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_do_not_depend_on_the_way(kernel):
    module, x = backbone(kernel), torch.randn(2, 29, 4, dtype=torch.float64)
    target = torch.randn(2, 29, 4, dtype=torch.float64)

    def gradients(run):
        module.zero_grad()
        (run()*target).sum().backward()
        return [p.grad.clone() for p in module.parameters()]

    want = gradients(lambda: module(x, need_state=False)[0])
    for run in (lambda: module(x)[0], lambda: in_windows(module, x, [10, 1, 18])[0], lambda: step_through(module, x)[0]):
        for g, w in zip(gradients(run), want, strict=True): close(g, w, 1e-9)


@pytest.mark.parametrize("form", ["dplr", "diag"])
def test_bf16_autocast_leaves_the_kernels_alone(form):
    torch.manual_seed(5)
    block, x = S4Block(8, KernelConfig(form, 16)), torch.randn(2, 300, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = block(x)
        assert block.s4.kernel(300).dtype == torch.float32
        assert torch.equal(block.s4.kernel(300), block.s4.kernel(300))
        loss = block(x, need_state=False)[0].float().square().mean()
        with torch.no_grad(): block.step(x[:, 0], state)
    loss.backward()
    want, after = block(x)
    close(y.float(), want, 0.03)                                                 # products in bf16, 8 bits
    close(state, after, 1e-6)                                                    # the state is untouched by autocast
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


@torch.no_grad()
def test_the_diagonal_stays_stable_whatever_the_parameters():
    kernel = SSMKernel(4, KernelConfig("dplr", 8, n_ssm=None)).double()
    kernel.A_real.normal_(0, 20)
    kernel.A_imag.normal_(0, 50)
    kernel.inv_dt.normal_(0, 10)
    ssm, _ = kernel.discrete()
    assert (-kernel.A_real.exp() < 0).all() and kernel(200).isfinite().all() and ssm.dA.isfinite().all()
