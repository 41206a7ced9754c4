"""Models on a GPU: backbone, heads, losses and their gradients, bf16-mixed, checkpoints, engines that generate."""
import pytest
import torch
from parity import (
    DTYPES,
    MODELS,
    THREE_WAYS,
    TOLERANCE,
    batch_of,
    close,
    close_gradients,
    placed,
    small_model,
    twins,
)
from three_ways import in_windows, leaves, step_through

from sashimi_wb.core.system import to_json
from sashimi_wb.models.blocked_cross_entropy import blocked_cross_entropy, cross_entropy_ref
from sashimi_wb.models.sashimi import SaShiMi, SaShiMiConfig
from sashimi_wb.models.wave_model import WaveModel
from sashimi_wb.ssm.learned import KernelConfig
from sashimi_wb.synthesis.engine import ENGINES, make_engine
from sashimi_wb.synthesis.stepping import Sampling
from sashimi_wb.tokens.quantization import Quantizer
from sashimi_wb.training.checkpoints import load_tree, read_weights, save_tree, save_weights


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["dplr", "diag"])
def test_three_ways_to_run_the_backbone(form, dtype, device):
    torch.manual_seed(0)
    kernel = KernelConfig(form, 16)
    backbone, exact = twins(SaShiMi(16, 1, (2, 4), kernel=kernel), device, dtype)
    x, noise = torch.randn(2, 2, 100, 16, dtype=torch.float64)       # noise has no symmetry that cancels
    for module, given in ((backbone, x.to(device, dtype)), (exact, x)):
        y, _ = module(given, need_state=False)
        (y*noise.to(y)).sum().backward()
    close_gradients(backbone, exact, TOLERANCE[dtype])
    with torch.no_grad():
        own = x.to(device, dtype)
        whole, after = backbone(own)
        close(whole, exact(x)[0], TOLERANCE[dtype])
        for y, state in (in_windows(backbone, own, [1, 7, 60, 32]), step_through(backbone, own, None)):
            close(y, whole, THREE_WAYS[dtype])
            for a, b in zip(leaves(state), leaves(after), strict=True):
                assert a.device.type == device.type
                close(a, b, THREE_WAYS[dtype])


@pytest.mark.parametrize("options", [{"unet": True}, {"norm": "scalar", "pool_activation": True, "prenorm": False},
                                     {"bidirectional": True}, {"interp": 2}], ids=str)
@torch.no_grad()
def test_variants_of_the_backbone(options, device):
    torch.manual_seed(0)
    backbone, exact = twins(SaShiMi(SaShiMiConfig(8, 1, (2, 2), kernel=KernelConfig("diag", 8), **options)), device,
                            torch.float32)
    x = torch.randn(2, 64, 8, dtype=torch.float64)
    close(backbone(x.to(device, torch.float32))[0], exact(x)[0], TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", MODELS)
def test_loss_and_gradients_of_every_head(kind, dtype, device):
    model, exact = twins(small_model(kind), device, dtype)
    x, y, rows = batch_of(model)
    mask = torch.ones_like(y, dtype=torch.bool)
    mask[0, :50] = False
    wanted = exact.loss(x, y, mask, rows)
    x, y, mask, rows = placed(device, dtype, x, y, mask, rows)
    loss = model.loss(x, y, mask, rows)
    close(loss, wanted, TOLERANCE[dtype])
    loss.backward()
    wanted.backward()
    close_gradients(model, exact, TOLERANCE[dtype])


@pytest.mark.parametrize("quantization", ["linear", "mu_law"])
@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_what_every_head_says(kind, quantization, device):
    model, exact = twins(small_model(kind, quantization=quantization), device, torch.float64)
    x, y, rows = batch_of(model, length=60)
    wanted, _ = exact(x, need_state=False, rows=rows)
    x, codes, rows = placed(device, torch.float64, x, y, rows)
    params, _ = model(x, need_state=False, rows=rows)
    head = model.head
    close(params, wanted, 1e-9)
    close(head.loss(params, codes), exact.head.loss(wanted, y), 1e-9)
    codes, y = codes[..., 0], y[..., 0]
    close(head.log_prob(params, codes), exact.head.log_prob(wanted, y), 1e-9)
    close(head.cdf(params, codes), exact.head.cdf(wanted, y), 1e-9)
    assert torch.equal(head.rank(params, codes, 10).cpu(), exact.head.rank(wanted, y, 10))
    assert torch.equal(head.sample(params, 0).cpu(), exact.head.sample(wanted, 0))
    log_probs = head.log_probs(params[:, :3])
    close(log_probs, exact.head.log_probs(wanted[:, :3]), 1e-9)
    close(log_probs.exp().sum(-1), torch.ones(2, 3), 1e-6)


@pytest.mark.parametrize("kind", ["categorical", "dml", "bytes"])
@torch.no_grad()
def test_draws_have_the_distribution_of_the_head(kind, device):
    """The mean of the cumulative probability of a draw is 1/2, apart from the bin of the draw itself."""
    model = small_model(kind).to(device)
    x, _, _ = placed(device, torch.float32, *batch_of(model, 1, 4))
    params = model(x, need_state=False)[0][:, -1:].expand(2000, 1, -1).contiguous()
    generator = torch.Generator(device).manual_seed(0)
    drawn = model.head.sample(params, 1.0, generator)
    assert drawn.device.type == device.type and drawn.min() >= 0 and drawn.max() < model.head.n_codes
    upper = model.head.cdf(params, drawn).double()
    middle = upper - model.head.log_prob(params, drawn).double().exp()/2
    assert abs(middle.mean().item() - 0.5) < 0.03 and abs(middle.std().item() - 12**-0.5) < 0.03


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocked_cross_entropy(dtype, device, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr("sashimi_wb.models.blocked_cross_entropy.BLOCK", 64*300)    # four blocks
    made = [torch.randn(shape, dtype=torch.float64) for shape in ((200, 16), (300, 16), (300,))]
    codes, weights = torch.randint(300, (200,)), torch.rand(200, dtype=torch.float64)
    added = torch.randn(200, 300, dtype=torch.float64)
    def run(f, device, dtype):
        inputs = [x.to(device, dtype).requires_grad_() for x in made]
        loss = f(*inputs, codes.to(device), weights.to(device, dtype), added.to(device, dtype))
        return loss, *torch.autograd.grad(loss, inputs)
    wanted = run(cross_entropy_ref, "cpu", torch.float64)
    for a, b in zip(run(blocked_cross_entropy, device, dtype), wanted): close(a, b, TOLERANCE[dtype])


@pytest.mark.parametrize("form", ["dplr", "zoh"])
@pytest.mark.parametrize("kind", ["categorical", "dml", "dml beside"])
def test_a_bf16_mixed_step_is_close_to_float32(kind, form, device):
    model = small_model(kind, form, layers=2).to(device)
    batch = placed(device, torch.float32, *batch_of(model, length=1024))
    x, y, rows = batch
    def gradients(loss):
        model.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])
    loss = model.loss(x, y, rows=rows)
    wanted = gradients(loss)
    with torch.autocast(device.type, torch.bfloat16): mixed = model.loss(x, y, rows=rows)
    got = gradients(mixed)
    assert mixed.dtype == torch.float32 or kind == "dml beside"
    assert abs(mixed - loss) < 2e-2*max(1, abs(loss.item()))
    assert got.dtype == torch.float32 and torch.nn.functional.cosine_similarity(got, wanted, 0) > 0.99


def test_training_on_the_device_follows_the_cpu(device):
    """Ten steps of AdamW in float32: the losses stay together."""
    def train(device):
        model = small_model(layers=2).to(device)
        x, y, _ = placed(device, torch.float32, *batch_of(model))
        optimizer = torch.optim.AdamW(model.parameter_groups(), fused=True)
        losses = []
        for _ in range(10):
            optimizer.zero_grad()
            losses.append(model.loss(x, y))
            losses[-1].backward()
            optimizer.step()
        return torch.stack(losses).detach()
    close(train(device), train("cpu"), 1e-4)


@pytest.mark.parametrize("kind", ["categorical", "dml"])
@pytest.mark.parametrize("form", ["dplr", "zoh"])
def test_a_whole_step_as_a_cuda_graph(form, kind, device):
    """Forward, backward and AdamW are captured once and replayed: the losses are those of ordinary steps."""
    if device.type == "cpu": pytest.skip("needs a GPU")
    def steps(n, graph):
        model = small_model(kind, form).to(device)
        x, y, _ = placed(device, torch.float32, *batch_of(model))
        optimizer = torch.optim.AdamW(model.parameter_groups(), fused=True, capturable=True)
        def step():
            loss = model.loss(x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss
        aside, losses = torch.cuda.Stream(), []
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3): losses.append(step().item())
        torch.cuda.current_stream().wait_stream(aside)
        if not graph: return losses + [step().item() for _ in range(n)]
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured): loss = step()
        for _ in range(n):
            captured.replay()
            losses.append(loss.item())
        return losses
    wanted, got = (torch.tensor(steps(5, graph)) for graph in (False, True))
    close(got, wanted, 1e-5)
    assert wanted[-1] < wanted[0]


def test_checkpoints_to_the_device_and_back(tmp_path, device):
    model = small_model().to(device)
    path = save_weights(tmp_path/"a.safetensors", model, to_json(model.config))
    again = WaveModel(model.config).to(device)
    again.load_state_dict(read_weights(path).state)
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert a.device.type == b.device.type == device.type and torch.equal(a, b), name
    x, y, _ = placed(device, torch.float32, *batch_of(model))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model.loss(x, y).backward()
    optimizer.step()
    tree = {"optimizer": optimizer.state_dict(), "state": model.initial_state(2)._asdict()}
    found = load_tree(save_tree(tmp_path/"tree.ckpt", tree))
    for i, state in tree["optimizer"]["state"].items():
        for name, value in state.items(): assert torch.equal(found["optimizer"]["state"][i][name], value.cpu()), name
    assert torch.equal(found["state"]["center"][0], tree["state"]["center"][0].cpu())
    fresh = torch.optim.AdamW(model.parameters(), fused=True)
    fresh.load_state_dict(found["optimizer"])
    assert {v.device.type for s in fresh.state.values() for k, v in s.items() if k != "step"} == {device.type}


ON_DEVICE = [name for name in ENGINES if name != "compiled"]


@pytest.mark.parametrize("kind", ["categorical", "dml", "bytes"])
@pytest.mark.parametrize("name", ON_DEVICE)
def test_engines_draw_what_the_cpu_draws(name, kind, device):
    """At temperature 0, after a prompt, two rows with different prompts."""
    if name not in ("plain", "traced") and device.type == "cpu": pytest.skip("needs a GPU")
    model = small_model(kind)
    quantizer = Quantizer(bits=model.config.bits)
    prompt = batch_of(model)[1][..., 0][:, :40]
    def draw(name, device):
        engine = make_engine(name, small_model(kind).to(device), 2, Sampling(temperature=0), quantizer)
        engine.feed(prompt)
        return torch.cat([engine.draw(30), engine.draw(50)], 1)
    wanted = draw("plain", "cpu")
    assert torch.equal(draw(name, device).cpu(), wanted)
