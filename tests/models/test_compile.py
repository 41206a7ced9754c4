"""Mixed precision and torch.compile on a CPU: they work, or say why not."""
import math
import shutil
import warnings

import pytest
import torch
from test_sequence import close
from three_ways import in_windows, leaves, step_through

from sashimi_wb.models.sashimi import SaShiMiConfig
from sashimi_wb.models.wave_model import ModelConfig, WaveModel
from sashimi_wb.ssm.learned import KernelConfig, SSMKernel
from sashimi_wb.tokens.streams import shift

pytestmark = pytest.mark.slow

torch.set_num_threads(1)
FORMS = {"dplr": KernelConfig("dplr", 16), "diag": KernelConfig("diag", 16, disc="zoh")}
KINDS = [("embedding", "categorical"), ("linear_projection", "dml")]
COMPILER = any(map(shutil.which, ("g++", "clang++", "c++")))


def bf16(): return torch.autocast("cpu", torch.bfloat16)


def made(form, encoder="embedding", head="categorical", length=300, width=16, layers=2):
    "A model and a batch (x, y)."
    torch.manual_seed(0)
    model = WaveModel(ModelConfig(8, encoder, head, backbone=SaShiMiConfig(width, layers, (4, 2), kernel=FORMS[form])))
    y = torch.randint(256, (2, length, 1))
    x = shift(y, 128)
    return model, x if encoder == "embedding" else x/128 - 1, y


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("encoder,head", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_bf16_training(form, encoder, head):
    """Products in bf16 have 8 bits: loss and gradient are close; weights and kernels stay in float32."""
    model, x, y = made(form, encoder, head)
    loss = model.loss(x, y)
    wanted = gradients(model, loss)
    with bf16(): mixed = model.loss(x, y)
    got = gradients(model, mixed)
    assert abs(mixed - loss) < 0.03 and got.dtype == torch.float32 and got.isfinite().all()
    assert torch.nn.functional.cosine_similarity(got, wanted, 0) > 0.998 and abs(got.norm()/wanted.norm() - 1) < 0.02
    with bf16():
        for kernel in (m for m in model.modules() if isinstance(m, SSMKernel)):
            assert kernel(300).dtype == kernel.window(300).K.dtype == torch.float32
            assert kernel.step_matrices()[1].dtype == torch.complex64


@pytest.mark.parametrize("form", FORMS)
def test_bf16_learns_what_float32_learns(form):
    """Ten steps on a sine: the losses stay together."""
    ends = []
    for mixed in (False, True):
        model, _, _ = made(form)
        y = (128 + 100*torch.sin(torch.arange(600)*0.1)).long().view(2, 300, 1)
        x = shift(y, 128)
        optimizer = torch.optim.AdamW(model.parameter_groups(0.01, 0.005))
        for _ in range(10):
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed): loss = model.loss(x, y)
            gradients(model, loss)
            optimizer.step()
        ends.append(model.loss(x, y).item())
    assert max(ends) < 0.9*math.log(256) and abs(ends[0] - ends[1]) < 0.15


def test_bf16_loss_is_a_float32():
    model, x, y = made("diag")
    with bf16(): loss = model.loss(x, y)
    assert loss.dtype == torch.float32 and abs(loss - model.loss(x, y)) < 5e-3


@pytest.mark.parametrize("encoder,head", KINDS)
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_bf16_three_ways(form, encoder, head):
    """Windows and steps under autocast, to the 8 bits of its products; a state crosses to float32 and back."""
    model, x, _ = made(form, encoder, head, 150)
    exact, _ = model(x)
    with bf16():
        y, _ = model(x)
        windows, state = in_windows(model, x[:, :99], [40, 1, 58])
        steps, _ = step_through(model, x[:, :99])
    close(y.float(), exact, 0.03)
    close(windows.float(), exact[:, :99], 0.03)
    close(steps.float(), exact[:, :99], 0.03)
    assert all(s.dtype == torch.complex64 for s in leaves(state) if s.is_complex())
    close(model(x[:, 99:], state)[0], exact[:, 99:], 0.03)
    with bf16(): close(model(x[:, 99:], model(x[:, :99])[1])[0].float(), exact[:, 99:], 0.03)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_weights_are_refused(dtype):
    model, x, y = made("dplr")
    model.to(dtype)
    for run in (lambda: model.loss(x, y), lambda: model(x), lambda: model.step(x[:, 0], model.initial_state(2))):
        with pytest.raises(ValueError, match="autocast"): run()
    with torch.no_grad(): assert model.float().loss(x, y).isfinite()            # and back


def compare_loss(model, x, y, backend):
    "Loss and gradients, compiled and not."
    wanted = gradients(model, loss := model.loss(x, y))
    compiled = torch.compile(model.loss, backend=backend)
    for _ in range(2):
        got = gradients(model, again := compiled(x, y))
        assert abs(again - loss) < 1e-5
        close(got, wanted, 1e-4)


@pytest.fixture
def dynamo():
    import torch._dynamo
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield torch._dynamo
    torch._dynamo.reset()


def test_compiled_loss_equals_eager(dynamo):
    """The graphs that torch.compile cuts a model into, without generated code."""
    compare_loss(*made("dplr", length=77, width=8, layers=1), "aot_eager")


@torch.no_grad()
def test_compiled_windows_and_steps_equal_eager(dynamo):
    model, x, _ = made("dplr", length=77, width=8, layers=1)
    exact, _ = model(x)
    close(in_windows(torch.compile(model, backend="aot_eager"), x, 30)[0], exact, 1e-5)
    state, step = model.initial_state(2), torch.compile(model.step, backend="aot_eager")
    for t in range(20):
        p, state = step(x[:, t], state)
        close(p, exact[:, t], 1e-5)


def test_the_backbone_is_left_alone(dynamo):
    """It is the one break of the graph."""
    model, x, y = made("dplr", length=77, width=8, layers=1)
    explained = dynamo.explain(model.loss)(x, y)
    assert explained.graph_count <= 4 and all("disable" in str(b.reason) for b in explained.break_reasons)


@pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
def test_loss_in_machine_code_equals_eager(dynamo):
    compare_loss(*made("dplr", length=77, width=8, layers=1), "inductor")
