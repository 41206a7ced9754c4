"""Rows of a predictor as distributions over codes and bytes, and models beside them."""
import dataclasses
import math

import mpmath
import pytest
import torch

from sashimi_wb.core.ranks import code_rank
from sashimi_wb.core.system import from_json, to_json
from sashimi_wb.models.heads import HEADS, make_head
from sashimi_wb.models.mixtures import mixture_log_prob, mixture_log_probs, mixture_sample
from sashimi_wb.models.predicted import (
    N_PARTS,
    ROW,
    SHARE,
    byte_log_masses,
    cdf_with_share,
    code_log_masses,
    interval_masses,
    log_masses,
    relative_mixture,
    row_features,
    row_mixture,
    start_relative,
    with_share,
)
from sashimi_wb.models.sashimi import SaShiMiConfig
from sashimi_wb.models.wave_model import ModelConfig, WaveModel
from sashimi_wb.prediction import adaptive, parts
from sashimi_wb.prediction.adaptive import AdaptivePredictor
from sashimi_wb.prediction.bins import Bins, byte_intervals
from sashimi_wb.ssm.learned import KernelConfig
from sashimi_wb.tokens.byte_tokens import to_bytes
from sashimi_wb.tokens.quantization import Quantizer
from sashimi_wb.tokens.streams import shift

TINY = SaShiMiConfig(d_model=8, n_layers=1, kernel=KernelConfig(d_state=4))
EVERY_BITS = [("linear", bits) for bits in range(1, 17)] + [("mu_law", bits) for bits in range(1, 17)]
SOME = [("linear", 1), ("linear", 8), ("linear", 16), ("mu_law", 8), ("mu_law", 16)]


@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)


def usual(n, bins):
    "Two centers that nearly agree, in the range of the codes; scales of a step to a sixteenth of full scale."
    spread = bins.full_scale*2.0**(-4 - 8*torch.rand(n, 1, dtype=torch.float64))
    centers = 0.4*bins.full_scale*torch.randn(n, 1).double() + spread*torch.randn(n, 2)
    scales = (spread*2.0**(torch.arange(8) % 4 - 2 + .3*torch.randn(n, 8))).clamp(min=.02)
    return torch.cat([centers, scales, torch.randn(n, 8).double().softmax(-1), torch.randn(n, 1)], -1)


def silent(n, bins):
    "The smallest scales, at the code of silence."
    rows = usual(n, bins)
    rows[:, :2], rows[:, 2:10] = 0, .02
    return rows


def clipped(n, bins):
    "Centers far outside, one weight of 1."
    rows = usual(n, bins)
    rows[:, :2] = bins.full_scale*torch.tensor([40., -3])
    rows[:, 10:18] = torch.eye(8).double()[torch.randint(8, (n,))]
    return rows


def lost(n, bins):
    "Scales far above full scale."
    rows = usual(n, bins)
    rows[:, 2:10] *= 1e4
    return rows


ROWS = {"usual": usual, "silent": silent, "clipped": clipped, "lost": lost}


def drawn(rows, bins):
    "Codes that follow the rows, some of them anything else."
    codes = mixture_sample(row_mixture(rows), bins)
    anything = torch.randint(bins.quantizer.n_codes, codes.shape)
    return torch.where(torch.rand(codes.shape) < .1, anything, codes)


# the distribution

@pytest.mark.parametrize("quantization, bits", EVERY_BITS)
def test_codes_sum_to_one(quantization, bits):
    bins, n = Bins(Quantizer(quantization, bits)), 20 if bits <= 12 else 3
    for name, make in ROWS.items():
        rows = make(n, bins)
        table = log_masses(rows, bins)
        assert (table.exp().sum(-1) - 1).abs().max() < 1e-9, name
        assert (table >= math.log(SHARE) - 1e-6).all() and table.isfinite().all()
        codes = torch.randint(2**bits, (n,))
        torch.testing.assert_close(code_log_masses(rows, codes, bins), table.gather(-1, codes[:, None])[:, 0])
        cdf = cdf_with_share(row_mixture(rows), codes, bins)
        below = (table.exp()*(torch.arange(2**bits) <= codes[:, None])).sum(-1)
        torch.testing.assert_close(cdf, below, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [17, 20, 24])
def test_codes_of_more_bits_sum_to_one(bits):
    bins = Bins(Quantizer(bits=bits))
    for make in (usual, silent):
        rows, total = make(1, bins), 0
        for codes in torch.arange(2**bits + 1).split(2**20):
            more = torch.arange(codes[0], min(codes[-1] + 2, 2**bits + 1))
            total += interval_masses(rows, bins.lower(more)[None]).sum()
        assert abs(total - 1) < 1e-9


@pytest.mark.parametrize("quantization, bits", SOME)
def test_masses_are_those_of_many_digits(quantization, bits):
    bins = Bins(Quantizer(quantization, bits))
    mpmath.mp.dps = 60
    for make in ROWS.values():
        rows = make(4, bins)
        for row, mix in zip(rows, zip(*row_mixture(rows))):
            codes = torch.tensor([0, 1, 2**(bits - 1) - 1, 2**(bits - 1), 2**bits - 2, 2**bits - 1]).clamp(0)
            found = code_log_masses(row.expand(6, ROW), codes, bins)
            for code, log_p in zip(codes, found):
                ends = [float(edge(code[None])) for edge in (bins.upper, bins.lower)]
                mass = 0
                for log_w, mean, log_s in zip(*(v.tolist() for v in mix)):
                    upper, lower = (1/(1 + mpmath.exp(-(mpmath.mpf(e) - mean)/mpmath.exp(log_s))) for e in ends)
                    mass += mpmath.exp(log_w)*(upper - lower)
                want = mpmath.log((1 - SHARE*2**bits)*mass + SHARE)
                # masses are differences of sums of up to 1, with errors of 1e-16; the share is 2e-12
                assert abs(want - float(log_p)) < 2e-5


@pytest.mark.parametrize("quantization, bits", [("linear", 8), ("linear", 16), ("linear", 24), ("mu_law", 8),
                                                ("mu_law", 16)])
def test_bytes_multiply_to_the_code(quantization, bits):
    bins = Bins(Quantizer(quantization, bits))
    for make in ROWS.values():
        rows = make(200, bins)[None]
        codes = drawn(rows, bins)[..., None]
        tokens = to_bytes(codes, bits)
        k = tokens.shape[1]//200
        byte_rows = torch.cat([rows.repeat_interleave(k, 1), byte_intervals(tokens, bits)], -1)
        table = byte_log_masses(byte_rows, bins)
        torch.testing.assert_close(table.exp().sum(-1), torch.ones(1, 200*k).double())
        of_bytes = table.gather(-1, tokens)[..., 0].unflatten(1, (-1, k)).sum(-1)
        torch.testing.assert_close(of_bytes, code_log_masses(rows, codes[..., 0], bins), rtol=1e-6, atol=1e-6)


def test_a_surprise_costs_39_bits():
    bins = Bins(Quantizer(bits=16))
    bits = -code_log_masses(silent(1, bins), torch.tensor([2**16 - 1]), bins)/math.log(2)
    assert bits.item() == pytest.approx(39)


def test_rows_have_the_layout_of_the_predictor():
    assert (N_PARTS, ROW, SHARE) == (adaptive.N_PARTS, adaptive.ROW, 2*2.0**-parts.TOTAL_BITS)


def sounds(n):
    "Samples of four kinds: a melody with noise, silence that ends in a tone, white noise, clicks."
    t = torch.arange(n)
    tone = .4*torch.sin(.05*t) + .2*torch.sin(.13*t + 1)
    clicks = torch.where(t % 97 == 0, .9, 0.)
    return {"melody": tone + .01*torch.randn(n), "silence, tone": torch.where(t < n//2, 0., tone),
            "noise": .3*torch.randn(n).clamp(-3, 3), "clicks": clicks}


@pytest.mark.parametrize("name, quantization, bits", [("categorical", "linear", 8), ("categorical", "mu_law", 8),
                                                      ("dml", "linear", 8), ("dml", "linear", 16), ("dml", "mu_law", 8),
                                                      ("bytes", "linear", 16), ("bytes", "linear", 24)])
def test_an_untrained_head_needs_the_bits_of_the_codec(name, quantization, bits):
    "The frequencies of the predictor's coder, within 1%; logits add nothing before training."
    q, most = Quantizer(quantization, bits), .01 if name == "dml" else 1e-4
    for kind, wave in sounds(2500).items():
        codes = q.encode(wave[None, :, None].clamp(-1, 1))[..., 0]
        want = AdaptivePredictor(q).bits(codes[0].numpy()).mean()
        y, rows = token_rows(name, torch.from_numpy(AdaptivePredictor(q).rows(codes[0].numpy()))[None], codes, bits)
        head = make_head(name, 8, bits, bins=Bins(q))
        with torch.no_grad(): nats = head.loss_from_feats(3*torch.randn(*y.shape[:2], 8), y, rows=rows).item()
        found = nats/math.log(2)*head.tokens_per_sample
        assert found == pytest.approx(want, rel=most, abs=1e-4), kind


def test_wrong_rows():
    bins = Bins(Quantizer(bits=16))
    rows = usual(5, bins)
    with pytest.raises(ValueError, match="expected 19 numbers in float64"): log_masses(rows.float(), bins)
    with pytest.raises(ValueError, match="expected 19 numbers in float64"): row_mixture(rows[:, 1:])
    with pytest.raises(ValueError, match="expected 21 numbers per byte"): byte_log_masses(rows, bins)


# relative to it

def wild(n, k):
    "Outputs of a new head, and such that overflow where they can."
    return {"new": start_relative(k).expand(n, -1), "random": start_relative(k) + 3*torch.randn(n, 3*k + 1),
            "large": 1e4*torch.randn(n, 3*k + 1), "largest": 1e30*torch.randn(n, 3*k + 1)}


@pytest.mark.slow
@pytest.mark.parametrize("quantization, bits", SOME)
def test_a_relative_mixture_is_a_distribution(quantization, bits):
    bins, n = Bins(Quantizer(quantization, bits)), 4
    for make in ROWS.values():
        for name, outputs in wild(n, 3).items():
            mix = relative_mixture(outputs, make(n, bins), bins)
            table = with_share(mixture_log_probs(mix, bins), bins)
            assert (table.exp().sum(-1) - 1).abs().max() < 1e-9, name


@pytest.mark.parametrize("quantization, bits", SOME)
def test_gradients_are_finite_for_all_outputs(quantization, bits):
    bins, n = Bins(Quantizer(quantization, bits)), 60
    for make in ROWS.values():
        rows = make(n, bins)
        for outputs in wild(n, 3).values():
            outputs = outputs.clone().requires_grad_()
            for codes in (drawn(rows, bins), torch.zeros(n).long(), torch.full((n,), 2**bits - 1)):
                nats = -with_share(mixture_log_prob(relative_mixture(outputs, rows, bins), codes, bins), bins)
                grad, = torch.autograd.grad(nats.sum(), outputs)
                assert nats.isfinite().all() and grad.isfinite().all() and nats.max() < 27.1


def test_features_are_moderate():
    for quantization, bits in SOME:
        bins = Bins(Quantizer(quantization, bits))
        for make in ROWS.values():
            features = row_features(make(50, bins), bins)
            assert features.isfinite().all() and features.abs().max() < 45   # a center of 40 times full scale


# heads and models beside it

def token_rows(name, rows, codes, bits):
    "Targets and rows of every token, for codes (b, l)."
    y = codes[..., None]
    if name != "bytes": return y, rows
    y = to_bytes(y, bits)
    return y, torch.cat([rows.repeat_interleave(y.shape[1]//codes.shape[1], 1), byte_intervals(y, bits)], -1)


CASES = [("categorical", "linear", 8), ("categorical", "mu_law", 8), ("categorical", "linear", 12),
         ("dml", "linear", 8), ("dml", "mu_law", 8), ("dml", "linear", 16), ("dml", "mu_law", 16), ("dml", "linear", 1),
         ("bytes", "linear", 8), ("bytes", "mu_law", 16), ("bytes", "linear", 24)]


@pytest.mark.parametrize("name, quantization, bits", CASES)
def test_an_untrained_model_needs_the_bits_of_the_predictor(name, quantization, bits):
    config = ModelConfig(bits, head=name, backbone=TINY, predictor="adaptive", quantization=quantization)
    net, bins = WaveModel(config), config.bins
    rows = torch.cat([usual(300, bins), silent(80, bins)])[None]
    codes = drawn(rows, bins)
    want = -code_log_masses(rows, codes, bins).mean().item()
    y, rows = token_rows(name, rows, codes, bits)
    stream = config.stream(Quantizer(quantization, bits))
    x = shift(stream.inputs(y), stream.first_input)
    loss = net.loss(x, y, rows=rows)
    assert loss.item()*stream.tokens_per_sample == pytest.approx(want, rel=.01)
    params, _ = net(x, rows=rows)
    assert params.shape == (*y.shape[:2], net.head.n_params)
    torch.testing.assert_close(net.head.loss(params, y).item(), loss.item(), rtol=1e-5, atol=1e-5)
    tokens = net.head.tokens_per_sample
    net.head.start_at(torch.ones(tokens, net.head.n_codes).squeeze(0).numpy())       # changes nothing
    torch.testing.assert_close(net(x, rows=rows)[0], params, rtol=0, atol=0)
    loss.backward()
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in grads) and any((p.grad != 0).any() for p in net.head.parameters())


@pytest.mark.parametrize("name, quantization, bits", CASES)
def test_steps_equal_windows(name, quantization, bits):
    config = ModelConfig(bits, head=name, backbone=TINY, predictor="adaptive", quantization=quantization)
    net, bins = WaveModel(config).double(), config.bins
    with torch.no_grad(): net.head.decoder.output.weight.normal_()
    rows = usual(30, bins).view(2, 15, ROW)
    y, rows = token_rows(name, rows, drawn(rows, bins), bits)
    stream = config.stream(Quantizer(quantization, bits))
    x = shift(stream.inputs(y), stream.first_input)
    with torch.no_grad():
        whole, _ = net(x, rows=rows)
        state, steps = net.initial_state(2), []
        for t in range(x.shape[1]):
            params, state = net.step(x[:, t], state, rows[:, t])
            steps.append(params)
        torch.testing.assert_close(torch.stack(steps, 1), whole)
        first, state = net(x[:, :7], rows=rows[:, :7])
        torch.testing.assert_close(torch.cat([first, net(x[:, 7:], state, rows=rows[:, 7:])[0]], 1), whole)


@pytest.mark.slow
@pytest.mark.parametrize("name, quantization, bits", [c for c in CASES if c[2] <= 12])
def test_head_methods_agree_beside_a_predictor(name, quantization, bits):
    bins = Bins(Quantizer(quantization, bits))
    head = make_head(name, 8, bits, 3, bins=bins).double()
    rows = usual(40, bins)[None]
    codes = drawn(rows, bins)
    y, rows = token_rows(name, rows, codes, bits)
    with torch.no_grad():
        head.decoder.output.weight.normal_(std=.2)
        params = head(torch.randn(1, 40, 8).double(), rows=rows)
        table = head.log_probs(params)
        torch.testing.assert_close(table.exp().sum(-1), torch.ones(1, 40).double())
        torch.testing.assert_close(head.log_prob(params, y), table.gather(-1, y)[..., 0])
        cdf = head.cdf(params[..., None, :], torch.arange(2**bits))
        torch.testing.assert_close(cdf, table.exp().cumsum(-1))
        assert (cdf[..., -1] == 1).all()
        likely = table.exp() > 1e-9             # below, the share makes codes alike
        ranks = head.rank(params, y[..., 0], 5)
        kept = likely.gather(-1, y)[..., 0]
        assert torch.equal(ranks[kept], code_rank(table, y[..., 0]).clamp(max=5)[kept])
        many = params[:, :1].expand(20_000, -1, -1)
        seen = head.sample(many, generator=torch.Generator().manual_seed(1))[:, 0].bincount(minlength=2**bits)/20_000
        assert (seen - table[0, 0].exp()).abs().max() < .02
        cold = head.sample(many[:200], .2, torch.Generator().manual_seed(1))[:, 0].double().std()
        assert cold <= head.sample(many[:200], 1., torch.Generator().manual_seed(1))[:, 0].double().std()


def test_without_a_predictor_nothing_is_new():
    old = {k: v for k, v in to_json(ModelConfig(backbone=TINY)).items() if k not in ("predictor", "quantization")}
    assert from_json(ModelConfig, old) == ModelConfig(backbone=TINY)
    for name, n_params in (("categorical", 256), ("dml", 30), ("bytes", 256)):
        net = WaveModel(ModelConfig(head=name, backbone=TINY))
        assert net.head.decoder.output.out_features == net.head.n_params == n_params
        assert not [key for key in net.state_dict() if "row" in key]
        with pytest.raises(ValueError, match="has no predictor"):
            net(torch.zeros(1, 3, 1).long(), rows=usual(3, Bins(Quantizer()))[None])


def test_refusals_name_their_reason():
    with pytest.raises(ValueError, match="expected at most 12 bits"): ModelConfig(13, predictor="adaptive")
    with pytest.raises(ValueError, match="tie_weights=False"): ModelConfig(tie_weights=True, predictor="adaptive")
    with pytest.raises(ValueError, match="up to|16"):
        ModelConfig(24, head="bytes", predictor="adaptive", quantization="mu_law")
    with pytest.raises(ValueError, match="unknown predictor"): ModelConfig(predictor="linear")
    config = ModelConfig(backbone=TINY, predictor="adaptive")
    for quantizer in (Quantizer("mu_law"), Quantizer(scaling="clip_minmax"), Quantizer(bits=7)):
        with pytest.raises(ValueError, match="expects codes of"): config.stream(quantizer)
    net, x, rows = WaveModel(config), torch.zeros(1, 3, 1).long(), usual(3, config.bins)[None]
    with pytest.raises(ValueError, match="expected its rows"): net(x)
    with pytest.raises(ValueError, match="expected its rows"): net.step(x[:, 0], None)
    with pytest.raises(ValueError, match="one for every token"): net(x, rows=rows[:, :2])
    for name in HEADS:
        for mode in ("last", "first", "ragged"):
            with pytest.raises(ValueError, match="stand beside single tokens"):
                make_head(name, 8, 8, mode=mode, bins=config.bins)
    assert dataclasses.replace(config, predictor="none").bins is None
