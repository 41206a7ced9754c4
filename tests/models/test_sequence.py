"""Three ways of running one function: convolution, stepping, windows with carried state; float32 and float64."""
import copy
import dataclasses
import io
import itertools

import pytest
import torch
from three_ways import in_windows, leaves, step_through

from sashimi_wb.models.sashimi import SaShiMi, SaShiMiConfig
from sashimi_wb.models.wave_model import ModelConfig, WaveModel
from sashimi_wb.ssm.hippo import MEASURES, S4D_INITS
from sashimi_wb.ssm.kernels import kernel_by_doubling, kernel_ref
from sashimi_wb.ssm.learned import KernelConfig, SSMKernel
from sashimi_wb.ssm.s4 import S4, S4Block
from sashimi_wb.training.checkpoints import load_tree, save_tree

torch.set_num_threads(1)
KERNELS = {"dplr": KernelConfig("dplr", 8), "zoh": KernelConfig("diag", 8, "lin", "zoh"),
           "bilinear": KernelConfig("diag", 8, "inv", "bilinear", n_ssm=None),
           "rank 2": KernelConfig("dplr", 8, "legt", n_ssm=2),
           "one step per state": KernelConfig("diag", 8, "lin", "zoh", dt_tie=False)}
INITS = [*(KernelConfig("dplr", 8, init) for init in MEASURES), KernelConfig("dplr", 8, "fout", rank=3),
         *(KernelConfig("diag", 8, init, disc) for init in S4D_INITS for disc in ("bilinear", "zoh"))]
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}


def close(a, b, tolerance):
    "Equal to a share of the largest value."
    assert a.shape == b.shape
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance*max(b.abs().max().item(), 1e-3))


def same_state(a, b, tolerance):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        if x.numel(): close(x, y, tolerance)
        else: assert x.shape == y.shape


def cut(length, sizes):
    "Window sizes of the given cycle that add up to the length."
    out = []
    for size in itertools.cycle(sizes):
        out.append(min(size, length - sum(out)))
        if sum(out) == length: return out


def backbone(kernel="dplr", dtype=torch.float64, n_layers=1, pool=(2, 3), expand=2, ff=2, **options):
    torch.manual_seed(3)
    return SaShiMi(4, n_layers, pool, expand, ff, KERNELS[kernel], **options).to(dtype)


IN_FLOAT32 = [("dplr", torch.float32), ("zoh", torch.float32)]


@pytest.mark.slow
@pytest.mark.parametrize("kernel,dtype", [*((kernel, torch.float64) for kernel in KERNELS), *IN_FLOAT32], ids=str)
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
        # the training kernel is the same kernel
        close(module(x[:, :length], need_state=False)[0], y, TOLERANCE[dtype])


@pytest.mark.parametrize("options", [{"pool": ()}, {"pool": (1,)}, {"pool": (5,)}, {"pool": (2, 2, 2)},
                                     {"prenorm": False}, {"norm": "scalar"}, {"pool_activation": True},
                                     {"pool_weight_norm": False}, {"ff": 0}, {"expand": 3},
                                     {"unet": True}, {"unet": True, "n_layers": 3},
                                     {"unet": True, "ff": 0, "n_layers": 2, "pool": (3,)},
                                     {"unet": True, "pool": ()}, {"unet": True, "pool": (2, 2, 2)}], ids=str)
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


@pytest.mark.portable
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


@pytest.mark.portable
@pytest.mark.parametrize("kernel", KERNELS)
@torch.no_grad()
def test_a_kernel_is_an_impulse_response(kernel):
    torch.manual_seed(2)
    module = SSMKernel(4, KERNELS[kernel], channels=2).double()
    ssm, C = module.discrete()
    for length in (1, 2, 3, 17, 64):
        close(kernel_by_doubling(ssm, C, length, torch.float64).K, kernel_ref(ssm, C, length), 1e-12)


@pytest.mark.parametrize("kernel,length", [*itertools.product(["dplr", "zoh"], [1, 2, 7, 16]),
                                           *((kernel, 7) for kernel in list(KERNELS)[2:])])
def test_gradients_against_finite_differences(kernel, length):
    torch.manual_seed(4)
    module = S4(2, dataclasses.replace(KERNELS[kernel], d_state=4)).double()
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
    for run in (lambda: module(x)[0], lambda: in_windows(module, x, [10, 1, 18])[0],
                lambda: step_through(module, x)[0]):
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


@pytest.mark.parametrize("config", INITS, ids=lambda c: f"{c.form} {c.init} {c.disc} {c.rank}")
def test_every_initialization_runs_three_ways_and_has_gradients(config):
    torch.manual_seed(6)
    layer, x = S4(4, config).double(), torch.randn(2, 40, 4, dtype=torch.float64)
    y, state = layer(x)
    with torch.no_grad():
        stepped, after = step_through(layer, x)
        close(stepped, y, 1e-11)
        close(after, state, 1e-11)
        close(in_windows(layer, x, [7, 1, 32])[0], y, 1e-11)
        assert (layer.kernel.discrete()[0].dA.abs() <= 1).all()
    y.square().sum().backward()
    for name, p in layer.named_parameters(): assert p.grad.isfinite().all() and (p.grad != 0).any(), name


PUSHES = [-1e30, -1e4, -50.0, 0.0, 50.0, 1e4, 1e30]


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_diagonal_stays_stable_whatever_the_parameters(kernel):
    torch.manual_seed(7)
    module = SSMKernel(4, KERNELS[kernel])
    for push, decay in itertools.product(PUSHES, PUSHES):
        with torch.no_grad():
            module.inv_dt.fill_(push)
            module.A_real.fill_(decay)
        module.zero_grad()
        ssm, _ = module.discrete()
        assert (ssm.dA.abs() <= 1 + 1e-12).all(), (push, decay)
        K = module(200)
        assert K.isfinite().all() and module.window(200).K.isfinite().all(), (push, decay)
        K.square().mean().backward()
        assert all(p.grad.isfinite().all() for p in module.parameters()), (push, decay)


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_optimizer_cannot_make_a_state_grow(kernel):
    """Ascent on the kernel's energy far out, with steps much too long: the system stays a contraction."""
    torch.manual_seed(8)
    module = SSMKernel(4, KERNELS[kernel])
    for k in range(40):
        gain = module(256)[..., 128:].square().mean()
        grads = torch.autograd.grad(-gain, list(module.parameters()))
        assert all(g.isfinite().all() for g in grads), k
        with torch.no_grad():
            for p, g in zip(module.parameters(), grads): p.sub_(3*g.sign())
            assert (module.discrete()[0].dA.abs() <= 1 + 1e-12).all()
            assert module(4096).isfinite().all(), k


@torch.no_grad()
def test_step_matrices_of_inference_tensors():
    with torch.inference_mode():
        torch.manual_seed(3)
        layer, x = S4(3, KERNELS["dplr"]), torch.randn(1, 9, 3)
        close(step_through(layer, x)[0], layer(x)[0], 2e-5)
        first = layer.kernel.step_matrices()
        assert layer.kernel.step_matrices() is first                             # kept
        layer.kernel.inv_dt.add_(0.5)                                            # does not change the tensor's version
        assert layer.kernel.step_matrices() is not first
        close(step_through(layer, x)[0], layer(x)[0], 2e-5)
    assert layer.kernel.inv_dt.is_inference() and layer.kernel.step_matrices() is not first


@torch.no_grad()
def test_states_are_saved_branched_and_moved(tmp_path):
    module, x = backbone(unet=True), torch.randn(2, 40, 4, dtype=torch.float64)
    y, _ = module(x)
    _, state = module(x[:, :17])
    rows = [module(x[i:i + 1, 17:], pick(state, i))[0] for i in range(2)]        # a branch a row
    close(torch.cat(rows), y[:, 17:], 1e-11)
    # to another precision, to a file, and back
    single = copy.deepcopy(module).float()
    moved = each(state, lambda t: t.to(torch.complex64 if t.is_complex() else torch.float32))
    kept = load_tree(save_tree(tmp_path/"state.safetensors", moved))
    same_state(kept, moved, 0)
    close(step_through(single, x[:, 17:].float(), kept)[0].double(), y[:, 17:], 1e-4)
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        there = each(state, lambda t: t.to(device, copy=True))  # noqa: B023
        close(copy.deepcopy(module).to(device)(x[:, 17:].to(device), there)[0].cpu(), y[:, 17:], 1e-11)


def each(state, f): return tuple(each(part, f) for part in state) if isinstance(state, tuple) else f(state)
def pick(state, row): return each(state, lambda t: t[row:row + 1])


# where there is no state

@torch.no_grad()
def test_both_directions_against_the_sum():
    torch.manual_seed(9)
    layer, u = S4(3, KERNELS["dplr"], channels=2,
                  bidirectional=True).double(), torch.randn(2, 11, 3, dtype=torch.float64)
    ahead, behind = layer.kernel(11).chunk(2)
    want = layer.D[:, :, None]*u.mT[:, None]
    for t, s in itertools.product(range(11), range(11)):
        want[..., t] += (ahead[..., t - s] if s <= t else behind[..., s - t - 1])*u[:, None, s]
    close(layer(u)[0], want.flatten(1, 2).mT, 1e-12)


FUTURE, CUT, LATER = "depends on future samples", "use l_max=None", "depends on later samples"
WITHOUT_STATE = {
    "layer, both sides": (lambda: S4(4, bidirectional=True), FUTURE),
    "block, both sides": (lambda: S4Block(4, bidirectional=True), FUTURE),
    "layer, cut": (lambda: S4(4, l_max=8), CUT),
    "block, cut": (lambda: S4Block(4, l_max=8), CUT),
    "backbone, both sides": (lambda: SaShiMi(4, 1, (2, 2), bidirectional=True), FUTURE),
    "backbone, interp": (lambda: SaShiMi(4, 1, (2, 2), interp=4), LATER),
}


@pytest.mark.parametrize("name", WITHOUT_STATE)
@torch.no_grad()
def test_a_module_without_a_state_gives_none_and_refuses_one_with_the_reason(name):
    make, reason = WITHOUT_STATE[name]
    module, x = make(), torch.randn(2, 23, 4)
    stateful = SaShiMi(4, 1, (2, 2)) if isinstance(module, SaShiMi) else S4(4)
    y, after = module(x)
    assert after is None and module(x, need_state=False)[1] is None
    assert y.isfinite().all() and torch.equal(y, module(x, need_state=False)[0])
    state = stateful.initial_state(2)
    for wrong in (lambda: module(x, state), lambda: module.initial_state(2), lambda: module.step(x[:, 0], state)):
        with pytest.raises(ValueError, match=reason): wrong()


@torch.no_grad()
def test_a_cut_kernel_depends_on_so_many_samples_only():
    torch.manual_seed(10)
    whole = S4(3, KERNELS["zoh"]).double()
    cut = S4(3, KERNELS["zoh"], l_max=8).double()
    cut.load_state_dict(whole.state_dict())
    x = torch.randn(2, 30, 3, dtype=torch.float64)
    close(cut(x[:, :8])[0], whole(x[:, :8])[0], 1e-12)
    close(cut(x)[0][:, 29], cut(x[:, 22:])[0][:, 7], 1e-12)
    assert (cut(x)[0][:, 29] - whole(x)[0][:, 29]).abs().max() > 1e-4
    close(cut(x, rate=2.0)[0][:, 29], cut(x[:, 26:], rate=2.0)[0][:, 3], 1e-12)


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"bidirectional": True, "unet": True}, {"interp": 2},
                                     {"interp": 4, "unet": True}], ids=str)
@torch.no_grad()
def test_any_length_where_there_is_no_state(options):
    module, x = backbone(**options), torch.randn(2, 50, 4, dtype=torch.float64)
    for length in (1, 2, 3, 5, 7, 8, 23, 48, 50):
        y, _ = module(x[:, :length])
        assert y.shape == (2, length, 4) and y.isfinite().all()


@torch.no_grad()
def test_lengths():
    torch.manual_seed(11)
    block, x = S4Block(4, KERNELS["dplr"]).double(), torch.randn(3, 20, 4, dtype=torch.float64)
    y, _ = block(x, lengths=torch.tensor([20, 5, 0]))
    close(y[0], block(x)[0][0], 1e-12)
    close(y[1, :5], block(x[:, :5])[0][1], 1e-12)
    close(y[2:], block(torch.zeros(1, 20, 4, dtype=torch.float64))[0], 1e-12)
    for wrong in ([20, 5], [20, 5, 21], [20, 5, -1], [1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match="expected 3 integers"): block(x, lengths=torch.tensor(wrong))


@pytest.mark.parametrize("words,match", [
    ({"init": "lin"}, "unknown init for dplr 'lin'"),
    ({"form": "dense"}, "unknown kernel form 'dense'"),
    ({"disc": "zoh"}, "unknown discretization for dplr"),
    ({"init": "legt", "rank": 1}, "rank 2"),
    ({"rank": 0}, "rank 1"),
    ({"form": "diag", "rank": 1}, "no low-rank part"),
    ({"dt_tie": False}, "share a step"),
    ({"d_state": 7}, "even integer"), ({"dt_min": 0.2}, "dt_min <= dt_max")])
def test_kernels_that_cannot_be(words, match):
    with pytest.raises(ValueError, match=match): KernelConfig(**words)
