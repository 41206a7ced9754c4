"""Generation on the GPU: the fused engine against the reference, its kernels against torch, and its blocks."""
import pytest
import torch

from sashimi_wb.models.sashimi import SaShiMiConfig
from sashimi_wb.models.wave_model import ModelConfig, WaveModel
from sashimi_wb.ssm.learned import KernelConfig
from sashimi_wb.synthesis.device_step import Block, DeviceModel, TorchKernels
from sashimi_wb.synthesis.engine import make_engine
from sashimi_wb.synthesis.fused_engine import FusedStepper, device_kernels
from sashimi_wb.synthesis.stepping import Sampling, Stepper
from sashimi_wb.tokens.quantization import Quantizer

KINDS = [("diag", "categorical", "embedding", 8), ("dplr", "categorical", "embedding", 8),
         ("diag", "categorical", "sinusoidal", 8), ("diag", "dml", "linear_projection", 16),
         ("diag", "bytes", "embedding", 16)]


def small(form, head, encoder, bits, d_model=32):
    """A small model of a kind with weights that are not those of a start, and its quantizer."""
    torch.manual_seed(0)
    backbone = SaShiMiConfig(d_model, 2, (4, 4), 2, 2, kernel=KernelConfig(form, 64))
    model = WaveModel(ModelConfig(bits, encoder, head, backbone=backbone)).eval()
    with torch.no_grad():
        for p in model.head.parameters(): p.add_(0.3*torch.randn_like(p))
    return model, Quantizer(bits=bits)


def drawn(model, quantizer, batch, n, temperature, kernels, device):
    """Parameters and tokens of the first n steps from silence."""
    def integers(*shape, value=0): return torch.full(shape, value, device=device)
    uniforms = torch.rand(batch, n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    block = Block(uniforms.to(device), integers(batch, n, value=-1), integers(batch, n), integers(batch, value=-1),
                  integers(1))
    steps, params = DeviceModel(model, batch, quantizer, kernels), []
    for count in range(n):
        steps.step(count)
        params.append(steps.params.clone())
        steps.draw(count, block, temperature)
    return torch.stack(params, 1), block


@pytest.mark.parametrize("batch", [1, 100])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind[:2]))
@torch.no_grad()
def test_kernels_equal_torch(kind, batch, device):
    """From the same tokens the same parameters, whichever kernels compute them."""
    model, quantizer = small(*kind)
    model = model.to(device)
    params, block = drawn(model, quantizer, batch, 40, 1.0, TorchKernels, device)
    found, others = drawn(model, quantizer, batch, 40, 1.0, device_kernels(device), device)
    same = (block.tokens == others.tokens).long().cumprod(1).bool()   # rounding may change a token, and all after it
    assert same.float().mean() > 0.9
    assert (found - params)[same].abs().max() < 1e-4*params.abs().max()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind[:2]))
def test_fused_engine_equals_the_reference(kind, device):
    """At temperature 0, after a prompt, over 4,096 samples; a mixture's mean may lie on an edge in float32."""
    model, quantizer = small(*kind)
    rows, n = (16, 256) if device.type == "cuda" else (2, 32)
    prompt = torch.randint(256, (rows, 200), generator=torch.Generator().manual_seed(2))
    def drawn(engine, **options):
        stepper = engine(model.to(device), rows, Sampling(temperature=0), quantizer, **options)
        stepper.feed(prompt)
        return stepper.draw(n)
    expected = drawn(Stepper)
    assert torch.equal(drawn(FusedStepper, dtype=torch.float64), expected)
    assert (drawn(FusedStepper) != expected).float().mean() < 0.01


def test_blocks_and_rows_do_not_matter(device):
    model, quantizer = small(*KINDS[0])
    def tokens(batch, *numbers):
        engine = make_engine("fused", model.to(device), batch, Sampling(seed=3), quantizer)
        return torch.cat([engine.draw(n) for n in numbers], 1)
    assert torch.equal(tokens(3, 300), tokens(3, 17, 256, 27))
    assert torch.equal(tokens(3, 300)[:1], tokens(1, 300))


def test_infinite_outputs_are_named(device):
    model, quantizer = small(*KINDS[0])
    with torch.no_grad(): model.encoder.weight[:] = torch.inf
    with pytest.raises(ValueError, match="not finite at token 0, row 0"):
        FusedStepper(model.to(device), 2, Sampling(), quantizer).draw(5)


def test_auto_is_the_fused_engine(device):
    model, quantizer = small(*KINDS[0])
    engine = make_engine("auto", model.to(device), 1, Sampling(), quantizer)
    assert type(engine).__name__ == ("FusedStepper" if device.type == "cuda" else "CompiledStepper")
    beside = WaveModel(ModelConfig(8, backbone=model.config.backbone, predictor="adaptive")).to(device)
    assert type(make_engine("auto", beside, 1, Sampling(), quantizer)).__name__ == "CompiledStepper"
    assert next(beside.parameters()).device.type == device.type
