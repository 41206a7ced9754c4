import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sashimi_wb.core.entropy import entropy_bits, smooth_probabilities
from sashimi_wb.models import blocked_cross_entropy as cross_entropy
from sashimi_wb.models.encoders import make_encoder
from sashimi_wb.models.heads import HEADS, ByteHead, CategoricalHead, DMLHead, SequenceDecoder, make_head, sample_logits
from sashimi_wb.models.mixtures import Mixture, mixture_cdf, mixture_log_prob, mixture_log_probs, mixture_sample
from sashimi_wb.models.sashimi import SaShiMiConfig
from sashimi_wb.models.sequence_decoder import MODES
from sashimi_wb.models.wave_model import ModelConfig, WaveModel
from sashimi_wb.prediction.bins import Bins
from sashimi_wb.tokens.byte_tokens import place_bytes, silent_input
from sashimi_wb.tokens.quantization import Quantizer, linear_decode, linear_encode
from sashimi_wb.training.evaluation import Tally, add_batch

REFERENCE = Path(__file__).parents[1]/"reference"
LENGTHS = {"None": None, "varied": torch.tensor([9, 4, 6]), "equal6": torch.tensor([6, 6, 6])}


def linear(bits): return Bins(Quantizer(bits=bits))


def load(name): return np.load(REFERENCE / name, allow_pickle=False)


# SequenceDecoder against the reference

def decoder_cases():
    for file in ("base", "fork"):
        data = load(f"decoder/sequence_decoder_{file}.npz")
        for key in data.files:
            if key.count("/") == 4: yield pytest.param(file, key, id=f"{file}-{key.replace('/', '-')}")


def pool_by_hand(x, n):
    return torch.stack([x[..., :j, :].mean(-2) for j in range(x.shape[-2] - n + 1, x.shape[-2] + 1)], -2)


@pytest.mark.parametrize("file, key", decoder_cases())
def test_sequence_decoder_against_reference(file, key, cache={}):  # noqa: B006
    data = cache.setdefault(file, load(f"decoder/sequence_decoder_{file}.npz"))
    mode, l_output, use_lengths, lengths, kind = key.split("/")
    n = None if l_output.endswith("None") else int(l_output.removeprefix("l_output_"))
    use, lengths = use_lengths.endswith("True"), LENGTHS[lengths.removeprefix("lengths_")]
    x = torch.from_numpy(data["x"]).double()
    weight, bias = torch.from_numpy(data["weight"]).double(), torch.from_numpy(data["bias"]).double()

    def ours():
        decoder = SequenceDecoder(4, 5, n, mode, use).double()
        with torch.no_grad():
            decoder.output.weight.copy_(weight)
            decoder.output.bias.copy_(bias)
            return decoder(x, lengths)

    if kind == "error" and mode == "pool" and not (use and lengths is None): # the reference cannot: what is right?
        rows = [x[i, :int(l)] for i, l in enumerate(lengths if use else [9, 9, 9])]
        counts = {len(row) if n is None else min(n, len(row)) for row in rows}
        if len(counts) == 1:
            want = torch.stack([pool_by_hand(row, counts.copy().pop()) for row in rows])
            return torch.testing.assert_close(ours(), F.linear(want, weight, bias), atol=1e-9, rtol=0)
    if kind == "error":
        # the reference forbids use_lengths here; ours is ragged anyway
        if mode == "ragged" and lengths is not None and n != 0:
            return torch.testing.assert_close(ours(), F.linear(x[:, :int(max(lengths))], weight, bias), atol=1e-9,
                                              rtol=0)
        with pytest.raises(ValueError): ours()
        return None
    want = torch.from_numpy(data[key])
    if mode == "pool" and n == 4: # silently wrong there: 4 outputs meet 4 features
        rows = torch.stack([pool_by_hand(x[i, :int(l)], 4) for i, l in enumerate(lengths if use else [9, 9, 9])])
        assert (ours() - want).abs().max() > 1e-3
        want = F.linear(rows, weight, bias)
    torch.testing.assert_close(ours(), want, atol=1e-9, rtol=0)


@pytest.mark.parametrize("file", ["base", "fork"])
@torch.no_grad()
def test_sequence_decoder_override_and_step(file):
    data = load(f"decoder/sequence_decoder_{file}.npz")
    x = torch.from_numpy(data["x"]).double()
    def close(ours, theirs): torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-9, atol=1e-12)
    def ours(mode, n): return SequenceDecoder(4, None, mode=mode)(x, l_output=n)
    close(ours("last", 2), data["override_last_2_identity"])
    for n in (1, 2, 4, None):
        torch.testing.assert_close(ours("pool", n), pool_by_hand(x, n or 9), rtol=1e-9, atol=1e-12)
    close(ours("pool", 1), data["override_pool_1_identity"])
    # the reference is wrong if 4 outputs meet 4 features, and raises for other numbers
    assert (ours("pool", 4) - torch.from_numpy(data["override_pool_4_identity"])).abs().max() > 1e-3
    for n in (2, None): assert str(data[f"override_pool_{n}_identity/error"]) == "RuntimeError"
    decoder = SequenceDecoder(4, 5).double()
    decoder.load_state_dict({"output.weight": torch.from_numpy(data["weight"]).double(),
                             "output.bias": torch.from_numpy(data["bias"]).double()})
    close(decoder.step(x[:, 0]), data["step"])
    torch.testing.assert_close(torch.stack([decoder.step(x[:, i]) for i in range(9)], 1), decoder(x))
    with pytest.raises(ValueError, match="fixed to 3"): SequenceDecoder(4, 5, 3, "last")(x.float(), l_output=2)


@pytest.mark.parametrize("settings_, words", [
    (dict(mode="middle"), "last, first, pool, sum, ragged, full"),
    (dict(l_output=-1), "l_output"), (dict(l_output="3"), "l_output"),
    (dict(mode="full", l_output=0), "time axis"), (dict(mode="ragged", l_output=0), "time axis")])
def test_sequence_decoder_settings(settings_, words):
    with pytest.raises(ValueError, match=words): SequenceDecoder(4, 5, **settings_)


@pytest.mark.parametrize("mode, lengths", [("last", [9, 4]), ("last", [10, 4, 4]), ("sum", [0, 1, 2]),
                                           ("last", [9, 4, 6])])
def test_sequence_decoder_lengths(mode, lengths):
    with pytest.raises(ValueError, match="lengths"):
        SequenceDecoder(4, 5, None, mode, True)(torch.randn(3, 9, 4), lengths)


def test_sequence_decoder_wrong_width():
    for mode in MODES:
        with pytest.raises(ValueError, match=r"\(b, l, 4\)"):
            SequenceDecoder(4, 5, mode=mode)(torch.randn(3, 9, 5), [9, 9, 9])


# what both heads promise

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)


HEADS_AND_BITS = [*((name, bits) for name in ("categorical", "dml") for bits in (1, 2, 8, 12)), ("bytes", 8)]


@pytest.mark.parametrize("name, bits", HEADS_AND_BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_protocol(name, bits, dtype):
    head = make_head(name, 16, bits, 4).to(dtype)
    feats, codes = torch.randn(2, 3, 16, dtype=dtype), torch.randint(0, 2**bits, (2, 3))
    params, every = head(feats), torch.arange(2**bits)
    assert params.shape == (2, 3, head.n_params) and params.dtype == dtype
    table = head.log_probs(params)
    assert table.shape == (2, 3, 2**bits) and table.dtype == dtype
    torch.testing.assert_close(head.log_prob(params[..., None, :], every), table)
    torch.testing.assert_close(head.log_prob(params, codes), table.gather(-1, codes[..., None])[..., 0])
    cdf = head.cdf(params[..., None, :], every)
    torch.testing.assert_close(cdf, table.exp().cumsum(-1), atol=1e-5, rtol=1e-4)
    assert (cdf[..., -1] == 1).all() and (cdf.diff() >= -1e-7).all() and (cdf >= 0).all() and (cdf <= 1).all()
    torch.testing.assert_close(head.cdf(params, codes), cdf.gather(-1, codes[..., None])[..., 0])
    torch.testing.assert_close(head.loss(params, codes[..., None]), -head.log_prob(params, codes).mean())
    torch.testing.assert_close(head.loss_from_feats(feats, codes), head.loss(params, codes))
    exact = params.double()
    own = head.log_prob(exact, codes)[..., None]
    assert torch.equal(head.rank(exact, codes, 2**bits), (head.log_probs(exact) > own + 1e-12).sum(-1))
    assert torch.equal(head.rank(exact, codes, 2), head.rank(exact, codes, 2**bits).clamp(max=2))
    drawn = head.sample(params)
    assert drawn.shape == (2, 3) and drawn.dtype == torch.int64 and 0 <= drawn.min() and drawn.max() < 2**bits
    again = [head.sample(params, 0.7, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*again)


@pytest.mark.parametrize("name", list(HEADS))
def test_mask_and_errors(name):
    head = make_head(name, 8, 8)
    feats, codes = torch.randn(2, 5, 8), torch.randint(0, 256, (2, 5))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    params = head(feats).detach().requires_grad_()
    with torch.no_grad(): params[~mask] = 1e30 # what padding holds does not matter
    loss = head.loss(params, codes.masked_fill(~mask, -100), mask[..., None])
    loss.backward()
    torch.testing.assert_close(loss, -head.log_prob(params, codes)[mask].mean())
    assert params.grad[~mask].abs().sum() == 0 and params.grad.isfinite().all()
    assert head.loss(params, codes, torch.zeros_like(mask)) == 0
    for codes_, words in ((codes.masked_fill(~mask, -100), "-100"), (codes + 256, "255"), (codes.float(), "integers"),
                          (codes[:, :3], "shape")):
        with pytest.raises(ValueError, match=words): head.loss(params, codes_)
    with pytest.raises(ValueError, match="mask"): head.loss(params, codes, mask[:1])
    with pytest.raises(ValueError, match="temperature"): head.sample(params, -0.1)
    with pytest.raises(ValueError, match=r"\(b, l, 8\)"): head(torch.randn(2, 5, 9))


@pytest.mark.parametrize("bits", [0, 17, "8", 8.0, True])
@pytest.mark.parametrize("name", list(HEADS))
def test_bits(name, bits):
    with pytest.raises(ValueError, match="bits"): make_head(name, 8, bits)


def test_names():
    with pytest.raises(ValueError, match="categorical, dml, bytes"): make_head("softmax", 8, 8)
    with pytest.raises(ValueError, match="n_mixtures"): DMLHead(8, 8, 0)
    assert sum(p.numel() for p in make_head("categorical", 64, 8).parameters()) == 16640
    assert sum(p.numel() for p in make_head("dml", 64, 16).parameters()) == 1950


def test_half_precision_parameters():
    for name in HEADS:
        head = make_head(name, 8, 8)
        params, codes = head(torch.randn(4, 5, 8)).bfloat16(), torch.randint(0, 256, (4, 5))
        assert head.loss(params, codes).isfinite() and head.sample(params).shape == (4, 5)


# categorical

def test_categorical_loss_is_cross_entropy():
    head = CategoricalHead(8, 8)
    params, codes = (50 * torch.randn(2, 9, 256)).requires_grad_(), torch.randint(0, 256, (2, 9))
    want, = torch.autograd.grad(F.cross_entropy(params.reshape(-1, 256), codes.reshape(-1)), params)
    got, = torch.autograd.grad(head.loss(params, codes), params)
    torch.testing.assert_close(got, want)


def test_cuts():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(4000, 4)
    def seen(**kw): return set(sample_logits(logits, **kw).unique().tolist())
    assert seen() == {0, 1, 2, 3} and seen(top_k=2) == {0, 1} and seen(top_k=9) == {0, 1, 2, 3}
    assert seen(top_p=.5) == {0} and seen(top_p=.51) == {0, 1} and seen(top_p=1.0) == {0, 1, 2, 3}
    assert seen(temperature=0) == {0}
    assert (sample_logits(logits, temperature=.25) == 0).double().mean() > .85 # 0.5^4 / sum
    for kw in (dict(top_k=0), dict(top_p=0), dict(top_p=1.1), dict(temperature=math.inf), dict(temperature=math.nan)):
        with pytest.raises(ValueError, match="expected"): sample_logits(logits, **kw)


def test_tying():
    encoder = make_encoder("embedding", 256, 8)
    head = CategoricalHead(8, 8).tie(encoder)
    assert head.decoder.output.weight is encoder.weight
    assert CategoricalHead(8, 8).tie(torch.nn.Embedding(256, 8)).decoder.output.weight.shape == (256, 8)
    head.loss_from_feats(encoder(torch.randint(0, 256, (1, 4))), torch.randint(0, 256, (1, 4))).backward()
    assert encoder.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="one direction"):
        CategoricalHead(8, 8).tie(make_encoder("linear_projection", 256, 8))
    with pytest.raises(ValueError, match="SinusoidalEmbedding: its table is fixed"):
        CategoricalHead(8, 8).tie(make_encoder("sinusoidal", 256, 8))
    with pytest.raises(ValueError, match=r"\(256, 8\)"): CategoricalHead(8, 8).tie(make_encoder("embedding", 256, 4))
    with pytest.raises(ValueError, match="three rows"): DMLHead(8, 8).tie(encoder)


# the mixture

def reference_ours(logits, means, log_scales, bits):
    "A mixture from the reference's parameters: means and scales relative to full scale."
    half = 2 ** (bits - 1)
    logits, means, log_scales = (torch.as_tensor(v).double() for v in (logits, means, log_scales))
    return Mixture(logits.log_softmax(-1), means * half, log_scales + math.log(half))


EXTREMES = {"fresh": 0, "random": 1, "wild": 10, "absurd": 1e4, "largest": 1e30}


@pytest.mark.parametrize("bits, rows", [(1, 200), (2, 200), (8, 200), (12, 20), (16, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", EXTREMES.values(), ids=EXTREMES)
def test_dml_sums_to_one(bits, rows, dtype, factor):
    head = DMLHead(4, bits).to(dtype)
    with torch.no_grad(): params = head.decoder.output.bias + factor * torch.randn(rows, 30, dtype=dtype)
    table = head.log_probs(params)
    assert table.isfinite().all()
    total = table.double().exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5 if dtype == torch.float32 else 1e-11, rtol=0)
    cdf = head.cdf(params[:, None], torch.arange(2**bits))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(cdf.double(), table.double().exp().cumsum(-1), atol=tolerance, rtol=0)
    assert (cdf.diff() >= -1e-7).all() and (cdf[:, -1] == 1).all()


@given(bits=st.integers(1, 16), at=st.floats(0, 1),
       raw=st.lists(st.floats(-1e6, 1e6, width=32), min_size=6, max_size=6))
@settings(max_examples=150, deadline=None)
def test_dml_loss_and_gradient_are_finite(bits, raw, at):
    params = torch.tensor(raw, dtype=torch.float32, requires_grad=True)
    code = torch.tensor(int(at * (2**bits - 1)))
    nats = -DMLHead(1, bits, 2).log_prob(params, code)
    nats.backward()
    assert nats.isfinite() and nats >= -1e-5 and params.grad.isfinite().all()


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_dml_gradient_matches_float64_everywhere(bits):
    raw = torch.cat([torch.randn(400, 2), 8 * torch.randn(400, 2), -6 + 4 * torch.randn(400, 2)], -1)
    codes = torch.randint(0, 2**bits, (400,))
    head, grads, values = DMLHead(1, bits, 2), [], []
    for dtype in (torch.float32, torch.float64):
        params = raw.to(dtype, copy=True).requires_grad_()
        values.append(-head.log_prob(params, codes))
        values[-1].sum().backward()
        grads.append(params.grad.double())
    close = (values[0].double() - values[1]).abs() < 1e-4 + 1e-4 * values[1].abs()
    assert close.all()
    assert ((grads[0] - grads[1]).abs() <= 2e-2 + 2e-3 * grads[1].abs()).double().mean() > .995


def test_dml_gradient_by_finite_differences():
    head = DMLHead(1, 6, 2).double()
    params = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    for code in (0, 1, 31, 62, 63):
        assert torch.autograd.gradcheck(lambda p, c=code: head.log_prob(p, torch.full((5,), c)), params)


@pytest.mark.parametrize("bits, floor", [(8, 5.67), (12, 9.67), (16, 13.67)])
def test_dml_has_no_floor(bits, floor):
    head, codes = DMLHead(1, bits), torch.randint(0, 2**bits, (64,))
    level = linear_decode(codes, bits)
    raw = torch.cat([torch.zeros(64, 10), (8 * level)[:, None].expand(-1, 10), torch.full((64, 10), -30.)], -1)
    assert -head.log_prob(raw, codes).mean() / math.log(2) < 1e-3 < floor


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_dml_training_passes_the_floor(bits):
    floor = {8: 5.67, 12: 9.67, 16: 13.67}[bits]
    head, codes = DMLHead(4, bits), torch.randint(0, 3, (64,)) + 2 ** (bits - 1)
    optimizer = torch.optim.Adam(head.parameters(), lr=.05)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, .98) # to 2e-5
    for _ in range(400):
        loss = -head.log_prob(head(torch.ones(1, 4)), codes).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        assert loss.isfinite()
    assert loss / math.log(2) < min(floor, 5.5) # three codes: 1.58 bits at best


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_dml_starts_below_uniform_on_audio(bits):
    t = torch.arange(4000) / 16000
    wave = .3 * torch.sin(2 * torch.pi * 220 * t) + .05 * torch.randn(4000)
    codes = linear_encode(wave[None, :, None].clamp(-1, 1), bits)
    loss = DMLHead(64, bits).loss_from_feats(torch.nn.functional.normalize(torch.randn(1, 4000, 64), dim=-1) * 8, codes)
    assert loss / math.log(2) < bits - .5


def test_dml_grid_is_that_of_linear_decode():
    for bits in (1, 4, 8, 16):
        codes = torch.arange(0, 2**bits, max(1, 2**bits // 64))
        raw = torch.stack([torch.zeros(len(codes)), 8 * linear_decode(codes, bits), torch.full((len(codes),), -30.)],
                          -1)
        assert torch.equal(DMLHead(1, bits, 1).sample(raw, temperature=0), codes)


def test_mixture_against_closed_form():
    mix = Mixture(*(torch.tensor([[v]], dtype=torch.float64) for v in (0, 3.2, math.log(5))))
    def upper(c): return 1 / (1 + math.exp(-(c - 128 + .5 - 3.2) / 5))
    for code, want in ((0, upper(0)), (130, upper(130) - upper(129)),
                       (255, 1 / (1 + math.exp((254 - 128 + .5 - 3.2) / 5)))):
        assert math.isclose(mixture_log_prob(mix, torch.tensor([code]), linear(8)).exp().item(), want, rel_tol=1e-9)
        assert math.isclose(mixture_cdf(mix, torch.tensor([code]), linear(8)).item(), 1 if code == 255 else upper(code),
                            rel_tol=1e-12)


def chi_square(counts, p): # pooled so that every cell expects at least 8
    n, cells, seen, expect = counts.sum(), [], 0, 0
    for c, q in zip(counts.tolist(), p.tolist()):
        seen, expect = seen + c, expect + q * float(n)
        if expect >= 8: cells.append((seen, expect)); seen = expect = 0
    cells[-1] = (cells[-1][0] + seen, cells[-1][1] + expect)
    statistic, free = sum((c - e) ** 2 / e for c, e in cells), len(cells) - 1
    return (statistic - free) / math.sqrt(2 * free) # about normal for many cells


@pytest.mark.parametrize("name, bits", [("dml", 2), ("dml", 6), ("dml", 8), ("dml", 12), ("categorical", 8)])
def test_samples_follow_the_probabilities(name, bits):
    head = make_head(name, 4, bits)
    for seed_ in range(3):
        torch.manual_seed(seed_)
        params = head(3 * torch.randn(1, 4)) + .5 * torch.randn(1, head.n_params)
        drawn = head.sample(params.expand(40_000, -1), generator=torch.Generator().manual_seed(seed_))
        assert abs(chi_square(drawn.bincount(minlength=2**bits), head.log_probs(params)[0].exp())) < 4.5


def test_dml_temperature():
    head, generator = DMLHead(4, 8, 3), torch.Generator().manual_seed(0)
    params = head.decoder.output.bias.detach().expand(20000, -1)
    spread = [head.sample(params, t, generator).double().std() for t in (.1, .5, 1., 2.)]
    assert spread == sorted(spread)
    with pytest.raises(ValueError, match="temperature"): head.sample(params, top_k=3)


# against the public mixture: where it is no distribution, ours is

def test_reference_mass_is_half_and_ours_is_one():
    wrong = 0
    for bits in (8, 16):
        data = load(f"dml/total_mass_{bits}bit.npz")
        mu, log_s, mass = (np.atleast_1d(data[k]).astype(float) for k in ("mu", "log_s", "total_mass"))
        wrong += (np.abs(mass - 1) > .1).sum()
        step = max(1, len(mu) // 40)
        mix = reference_ours(np.zeros((len(mu[::step]), 1)), mu[::step, None], log_s[::step, None], bits)
        for part in range(len(mix.means)):
            total = mixture_log_probs(Mixture(*(v[part:part + 1] for v in mix)), linear(bits)).exp().sum()
            assert abs(total - 1) < 1e-9
    assert wrong > 10


@pytest.mark.parametrize("name", ["loss_8bit_K10_seed0", "loss_12bit_K5_seed4", "loss_16bit_K10_seed1",
                                  "loss_16bit_K8_wide_seed3", "loss_8bit_K1_wide_seed2"])
def test_reference_loss_is_about_ln2_too_high(name):
    data = load(f"dml/{name}.npz")
    bits = json.loads(str(data["config"]))["bits"]
    log_scales = np.clip(data["log_scales"], -3, 3) # the reference's clamp
    mix = reference_ours(data["logit_probs"], data["means"], log_scales, bits)
    ours = -mixture_log_prob(mix, torch.from_numpy(data["targets"]), linear(bits))
    excess = (torch.from_numpy(data["nll_per_element_f64"]) - ours).flatten()
    inner = ((data["targets"] > 2) & (data["targets"] < 2**bits - 3)).flatten()
    assert ours.isfinite().all() and (excess > -1e-2).all()
    assert excess[torch.from_numpy(inner)].median() == pytest.approx(math.log(2), abs=.05) or bits == 16
    mix = Mixture(*(v[:1, :10] for v in mix))
    drawn = mixture_sample(Mixture(*(v.expand(400, *v.shape) for v in mix)), linear(bits),
                           generator=torch.Generator().manual_seed(0)).double()
    p = mixture_log_probs(mix, linear(bits)).exp()
    want = (p * torch.arange(2**bits)).sum(-1)
    sd = ((p * torch.arange(2**bits)**2.).sum(-1) - want**2).clamp(min=1e-6).sqrt()
    assert (((drawn.mean(0) - want) / sd * 20).square().mean()) < 2.5 # unbiased: the reference's are half a code low


@pytest.mark.parametrize("bits,tokens", [(1, 9), (8, 300), (16, 40)])
def test_categorical_loss_in_blocks_equals_the_plain_one(bits, tokens, monkeypatch):
    monkeypatch.setattr(cross_entropy, "BLOCK", 2**bits*16)                 # 16 tokens a block
    head, feats = CategoricalHead(16, bits), torch.randn(2, tokens, 16, requires_grad=True)
    codes, mask = torch.randint(2**bits, (2, tokens, 1)), torch.rand(2, tokens, 1) > 0.3
    mask[0] = False                                                         # a row that does not count at all
    inputs = [feats, *head.parameters()]
    for counted in (None, mask):
        losses = head.loss(head(feats), codes, counted), head.loss_from_feats(feats, codes, counted)
        grads = [torch.autograd.grad(2*loss, inputs) for loss in losses]
        for a, b in zip((losses[0], *grads[0]), (losses[1], *grads[1]), strict=True):
            assert (a - b).abs().max() <= 1e-5*a.abs().max()
    nothing = head.loss_from_feats(feats, codes, torch.zeros_like(mask))
    assert nothing == 0 and all((g == 0).all() for g in torch.autograd.grad(nothing, inputs))
    value = head.loss_from_feats(feats, codes)
    with torch.no_grad(): assert head.loss_from_feats(feats, codes) == value


def test_categorical_loss_in_blocks_checks_its_targets():
    head, feats = CategoricalHead(4, 3), torch.randn(1, 5, 4)
    with pytest.raises(ValueError, match="codes: expected shape"):
        head.loss_from_feats(feats, torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(ValueError): head.loss_from_feats(feats, torch.full((1, 5), 8))
    padded = torch.tensor([[0, 1, 2, -100, 99]])
    assert head.loss_from_feats(feats, padded, torch.tensor([[True]*3 + [False]*2])).isfinite()


@pytest.mark.parametrize("bits, n", [(8, 1), (16, 2), (24, 3)])
def test_bytes(bits, n):
    head = make_head("bytes", 8, bits)
    assert (head.token_bits, head.bits, head.tokens_per_sample, head.n_codes, head.n_params) == (8, bits, n, 256, 256)
    for wrong in (12, 1):
        with pytest.raises(ValueError, match="expected 8, 16 or 24"): make_head("bytes", 8, wrong)
    with pytest.raises(ValueError, match="from 1 to 24, got 32"): make_head("bytes", 8, 32)


@pytest.mark.parametrize("name", list(HEADS))
@pytest.mark.parametrize("mode, l_output", [("full", None), ("last", 2), ("first", 2), ("last", 1), ("pool", 2),
                                            ("sum", 2), ("ragged", None)])
@pytest.mark.parametrize("use_lengths", [False, True])
def test_modes_and_lengths(name, mode, l_output, use_lengths):
    "The loss of a head is that of the steps its decoder keeps; bytes of different places are not added up."
    if mode in ("pool", "sum") and name == "bytes":
        with pytest.raises(ValueError, match="stand for different things"):
            HEADS[name](8, 8, mode=mode, l_output=l_output)
        return
    if use_lengths and mode == "full": return
    head = HEADS[name](8, 8, mode=mode, l_output=l_output, use_lengths=use_lengths)
    feats, lengths = torch.randn(3, 6, 8, requires_grad=True), torch.tensor([6, 2, 4])
    params = head(feats, lengths)
    torch.testing.assert_close(params, head.decoder(feats, lengths))
    codes = torch.randint(0, 256, params.shape[:2])
    torch.testing.assert_close(head.loss_from_feats(feats, codes, lengths=lengths), head.loss(params, codes))
    with pytest.raises(ValueError, match="shape"):
        head.loss_from_feats(feats, codes[:, :1].expand(-1, 9), lengths=lengths)
    if use_lengths or mode == "ragged":
        with pytest.raises(ValueError, match="needs lengths"): head(feats)


# before training

def histograms(v):
    "Counts of 100,000 tokens: silence alone, almost all silence, all codes alike, the two ends, a hill, none."
    x = np.arange(v) - v//2
    silence, hill = np.where(x == 0, 100_000, 0), np.exp(-np.abs(x)/(v/50))
    shapes = {"silence": silence, "near silence": silence + 200*(np.abs(x) == 1), "uniform": np.ones(v),
              "ends": (np.abs(x) >= v//2 - 1)*1.0, "hill": hill}
    return {name: np.round(1e5*shape/shape.sum()).astype(int) for name, shape in shapes.items()} | {"none": 0*silence}


@pytest.mark.parametrize("bits", [1, 4, 8, 12, 16])
@pytest.mark.parametrize("name", ["categorical", "dml"])
def test_untrained_heads_predict_the_histogram_they_started_at(name, bits):
    for kind, counts in histograms(2**bits).items():
        head = make_head(name, 4, bits).start_at(counts)
        with torch.no_grad(): log_p = head.log_probs(head(5*torch.randn(3, 4))).double()
        assert (log_p == log_p[:1]).all() and log_p.isfinite().all(), kind
        torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(3, dtype=torch.float64), atol=1e-4, rtol=0)
        if not counts.any(): continue
        bits_needed = -(log_p[0].numpy()*counts).sum()/counts.sum()/math.log(2)
        # a mixture of ten parts has no sharp edges; a categorical head has, up to the smoothing of rare codes
        assert bits_needed < entropy_bits(counts) + (1.0 if name == "dml" else 0.5), kind


def test_a_start_needs_one_count_per_code_of_a_token():
    assert make_head("bytes", 4, 24).start_at(np.ones((3, 256), int)).decoder.output.bias.shape == (256,)
    for name, shape in (("categorical", 255), ("dml", 256), ("bytes", 256), ("bytes", (256, 2))):
        with pytest.raises(ValueError, match=r"counts: expected one for each of the \d+ codes of a token"):
            make_head(name, 4, 16 if name != "categorical" else 8).start_at(np.ones(shape, int))


@pytest.mark.parametrize("bits, n", [(16, 2), (24, 3)])
def test_every_place_of_a_byte_starts_at_its_own_histogram(bits, n):
    head, counts = make_head("bytes", 4, bits), np.random.default_rng(0).integers(0, 999, (n, 256))**2
    head.start_at(counts)
    feats, expected = 5*torch.randn(2, 3*n, 4), torch.tensor(np.stack([*map(smooth_probabilities, counts)])).float()
    torch.testing.assert_close(head(feats).softmax(-1), expected.repeat(3, 1).expand(2, -1, -1))
    after = torch.tensor([[0], [256*(n - 1)]])                        # the first byte of a sample, and the last
    torch.testing.assert_close(head(feats[:, 0], places=head.next_places(after)).softmax(-1), expected[[1, 0]])


def test_bytes_are_scored_in_blocks_that_end_within_a_sample(n=6000):
    torch.manual_seed(0)
    model = WaveModel(ModelConfig(24, head="bytes", backbone=SaShiMiConfig(4, 1, ())))
    y, tally = torch.randint(256, (1, 3*n, 1)), Tally(24, (), 3)
    assert (2**22//256) % 3 and 3*n > 2**22//256                      # more than one block, of no whole samples
    x = torch.cat([torch.tensor([[[silent_input(24)]]]), place_bytes(y, 3)[:, :-1]], 1)
    with torch.no_grad():
        model.head.decoder.output.weight[:, -3:].normal_(std=3)
        add_batch(tally, model, {"x": x, "y": y, "mask": torch.ones_like(y, dtype=torch.bool)})
        assert abs(tally.result()["nats_per_token"] - model.loss(x, y).item()) < 1e-4


def test_places_are_part_of_the_projection():
    head, feats = ByteHead(8, 24), torch.randn(2, 7, 8)
    weight, biases = head.projection()
    params = head(feats)
    torch.testing.assert_close(params, F.linear(feats, weight) + biases[torch.arange(7) % 3])
    places, codes = torch.arange(14).reshape(2, 7) % 3, torch.randint(256, (2, 7))
    moved = head(feats, places=places)
    assert torch.equal(moved[0], params[0]) and not torch.isclose(moved[1], params[1]).any()
    torch.testing.assert_close(head.loss_from_feats(feats, codes, places=places), head.loss(moved, codes))
    older = head.state_dict()
    older["decoder.output.weight"] = weight                          # saved with one bias for all places
    read = ByteHead(8, 24)
    read.load_state_dict(older)
    torch.testing.assert_close(read(feats), F.linear(feats, weight, head.decoder.output.bias))


def speech_like(n=20_000):
    "Codes of 16 bits, half of them silence within a step of the grid, the others loud; and their histogram."
    codes = torch.where(torch.rand(n) < 0.5, torch.randint(-1, 2, (n,)), (3000*torch.randn(n)).long()) + 2**15
    return codes, codes.bincount(minlength=2**16).numpy()


def test_steps_of_an_optimizer_do_not_lose_narrow_parts():
    codes, counts = speech_like()
    head, feats = DMLHead(8, 16).start_at(counts), torch.randn(len(codes), 8)
    optimizer, bits = torch.optim.Adam(head.parameters(), 0.016), []
    for _ in range(40):
        loss = head.loss(head(feats), codes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bits.append(loss.item()/math.log(2))
    assert max(bits) < bits[0] + 0.1 and bits[-1] < bits[0]


def test_units_of_a_mixture_are_kept_with_its_weights():
    head, feats = DMLHead(8, 16).start_at(speech_like()[1]), torch.randn(5, 8)
    torch.nn.init.normal_(head.decoder.output.weight)
    weight, bias = head.projection()
    params = head(feats)
    torch.testing.assert_close(params, F.linear(feats, weight, bias))
    assert not torch.equal(params, head.decoder(feats))
    read = DMLHead(8, 16)
    read.load_state_dict(head.state_dict())
    assert torch.equal(read(feats), params)
    older = {k: v for k, v in DMLHead(8, 16).state_dict().items() if k != "units"}      # without units: all are 1
    read.load_state_dict(older)
    assert "units" not in older and torch.equal(read(feats), read.decoder(feats))
    with pytest.raises(RuntimeError, match="Missing key"): read.load_state_dict({})


def test_a_tied_start_leaves_the_embedding():
    encoder = make_encoder("embedding", 256, 8)
    rows = encoder.weight.detach().clone()
    head = CategoricalHead(8, 8).tie(encoder).start_at(np.arange(256))
    assert torch.equal(head.decoder.output.weight, rows) and head.decoder.output.bias.diff().min() > 0
