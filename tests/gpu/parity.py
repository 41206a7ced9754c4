"""What the tests on a GPU share: float64 twins on the CPU, comparison by the largest value, small models."""
import copy

import torch

from sashimi_wb.models.sashimi import SaShiMiConfig
from sashimi_wb.models.wave_model import ModelConfig, WaveModel
from sashimi_wb.ssm.learned import KernelConfig
from sashimi_wb.tokens.streams import shift

FORMS = {"dplr": KernelConfig(), "zoh": KernelConfig("diag", disc="zoh"),
         "bilinear": KernelConfig("diag", init="lin", n_ssm=None), "rank 2": KernelConfig("dplr", init="legt")}
DTYPES = [torch.float64, torch.float32]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}        # of the largest value, against float64 on the CPU
THREE_WAYS = {torch.float64: 1e-9, torch.float32: 1e-4}       # window, windows with carried state, steps


def twins(module, device, dtype):
    """A module on the device in the given precision, and the same weights in float64 on the CPU."""
    return copy.deepcopy(module).to(device, dtype), copy.deepcopy(module).double()


def close(got, wanted, tolerance, what=""):
    """Equal to a share of the largest value."""
    assert got.shape == wanted.shape, what
    got, wanted = (x.detach().cpu().to(torch.complex128 if x.is_complex() else torch.float64) for x in (got, wanted))
    if not wanted.numel(): return
    error = ((got - wanted).abs().max()/wanted.abs().max().clamp(min=1e-12)).item()
    assert error <= tolerance, f"{what}: {error:.1e} of the largest value, expected at most {tolerance:.0e}"


def close_gradients(module, exact, tolerance):
    """The gradients of all parameters of twins."""
    for (name, p), wanted in zip(module.named_parameters(), exact.parameters(), strict=True):
        if wanted.grad is None: assert p.grad is None, name
        else: close(p.grad, wanted.grad, tolerance, name)


MODELS = {   # encoder, head, bits, predictor
    "categorical": ("embedding", "categorical", 8, "none"),
    "sinusoidal": ("sinusoidal", "categorical", 8, "none"),
    "dml": ("linear_projection", "dml", 16, "none"),
    "bytes": ("embedding", "bytes", 16, "none"),
    "categorical beside": ("embedding", "categorical", 8, "adaptive"),
    "dml beside": ("linear_projection", "dml", 16, "adaptive"),
    "bytes beside": ("embedding", "bytes", 16, "adaptive"),
}


def small_model(kind="categorical", form="zoh", width=16, layers=1, quantization="linear"):
    torch.manual_seed(0)
    encoder, head, bits, predictor = MODELS[kind]
    backbone = SaShiMiConfig(width, layers, (2, 4), kernel=FORMS[form])
    model = WaveModel(ModelConfig(bits, encoder, head, backbone=backbone, predictor=predictor,
                                  quantization=quantization))
    with torch.no_grad():                                      # an output layer beside a predictor starts at zero
        for p in model.head.parameters(): p.add_(0.02*torch.randn_like(p))
    return model


def batch_of(model, rows=2, length=240):
    """Inputs, targets and rows of a predictor (None without one), on the CPU, in float64 where they are floats."""
    torch.manual_seed(1)
    c, stream = model.config, model.config.stream()
    wave = torch.cumsum(torch.randn(rows, length//stream.tokens_per_sample, 1), 1)
    y, feed = stream.encode(0.9*wave/wave.abs().amax(), lambda tensor, fill: tensor)
    x = shift(feed, stream.first_input)
    if c.predictor == "none": return (x.double() if x.is_floating_point() else x), y, None
    return (x.double() if x.is_floating_point() else x), y, made_rows(c, y)


def made_rows(config, y):
    """What a predictor might say of tokens: two centers near the sample, scales, weights, an error; for bytes more."""
    from sashimi_wb.prediction.bins import byte_rows
    from sashimi_wb.tokens.byte_tokens import from_bytes
    codes = from_bytes(y, config.bits) if config.head == "bytes" else y
    level = config.bins.level(codes).double()
    spread = config.bins.full_scale/100
    def noise(n): return torch.randn(*level.shape[:2], n, dtype=torch.float64)
    parts = [level + spread*noise(2), spread*noise(8).exp(), noise(8).softmax(-1), noise(1)]
    rows = torch.cat(parts, -1)
    return byte_rows(rows, y, config.bits) if config.head == "bytes" else rows


def placed(device, dtype, *tensors):
    """Tensors on the device: floats in the given precision, but rows of a predictor, the last ones, in float64."""
    *inputs, rows = (None if x is None else x.to(device) for x in tensors)
    return *(x.to(dtype) if x.is_floating_point() else x for x in inputs), rows
